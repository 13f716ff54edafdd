//! Servers as child processes that cannot outlive the test, and ports for them to listen on.

use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// Runs the program `$2...` and ends it (SIGTERM, then SIGKILL after `$0` tenths of a second) when stdin closes,
/// which the kernel does for a test that was killed as well. Removes the folder `$1`, if one is named, at the end.
/// The exit status is the program's. The keeper itself lets go of stdout and stderr: a message of its own to a reader
/// that was killed would be the end of it.
const KEEPER: &str = r#"
tenths=$0 folder=$1
shift
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
exec >/dev/null 2>&1
(
    read -r _ <&3
    kill -TERM "$server"
    while [ "$tenths" -gt 0 ] && kill -0 "$server"; do
        sleep 0.1
        tenths=$((tenths - 1))
    done
    kill -KILL "$server"
) &
guard=$!
exec 3<&-
wait "$server"
status=$?
kill "$guard"
[ -z "$folder" ] || rm -rf -- "$folder"
exit "$status"
"#;

/// How a program is started under a [`Supervised`].
pub struct Launch<'a> {
    pub program: &'a Path,
    pub args: Vec<String>,
    pub stdout: Stdio,
    pub stderr: Stdio,
    /// Tenths of a second between SIGTERM and SIGKILL.
    pub grace_tenths: u32,
    /// A folder to remove after the program has ended, even if the test was killed.
    pub remove: Option<&'a Path>,
}

/// A child process that ends when this value is dropped, and also when this process is killed.
///
/// A small shell keeps it: it waits on a pipe that only this process holds, in a process group of its own so that
/// Ctrl-C at the terminal cannot take the keeper away before its work is done.
#[derive(Debug)]
pub struct Supervised {
    keeper: Child,
}

impl Supervised {
    /// Starts the program. A program that cannot be executed shows as one that exited with status 126 or 127.
    pub fn spawn(launch: Launch<'_>) -> io::Result<Self> {
        let keeper = Command::new("sh")
            .args(["-c", KEEPER])
            .arg(launch.grace_tenths.to_string())
            .arg(launch.remove.map_or(OsStr::new(""), Path::as_os_str))
            .arg(launch.program)
            .args(launch.args)
            .stdin(Stdio::piped())
            .stdout(launch.stdout)
            .stderr(launch.stderr)
            .process_group(0)
            .spawn()?;
        Ok(Self { keeper })
    }

    /// The reading end of the program's stderr, once, if it was started with [`Stdio::piped`].
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.keeper.stderr.take()
    }

    /// The program's exit status if it has ended.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.keeper.try_wait()
    }

    /// Waits for the program to end by itself.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        // Child::wait would close the pipe, and with it end the program.
        let pipe = self.keeper.stdin.take();
        let status = self.keeper.wait();
        self.keeper.stdin = pipe;
        status
    }

    /// Tells the program to end, without waiting for it.
    pub fn begin_stop(&mut self) {
        drop(self.keeper.stdin.take());
    }

    /// Ends the program and waits until it is gone.
    pub fn stop(&mut self) {
        self.begin_stop();
        // An error here means that there is no such child any more, which is what was wanted.
        let _ = self.keeper.wait();
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A loopback TCP port that nobody listens on at the moment.
///
/// It lies below the ranges that Linux and macOS give to outgoing connections: a client that keeps trying a port of
/// those while its server is down can end up connected to itself. Someone else may still take the port before the
/// caller binds it, so the caller tries again with another one.
///
/// # Panics
/// When no port could be bound, which means that the machine has no loopback interface.
pub fn free_port() -> u16 {
    const FIRST: u64 = 16_384;
    const COUNT: u64 = 16_000;
    for _ in 0..COUNT {
        let port = (FIRST + random() % COUNT) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free TCP port on 127.0.0.1 between {FIRST} and {}", FIRST + COUNT);
}

/// An address that nobody listens on, and that nobody but the programs this process starts can take: those that, like
/// Envoy, share their ports.
#[derive(Debug)]
pub struct Reserved {
    _socket: tokio::net::TcpSocket,
}

impl Reserved {
    /// # Errors
    /// Somebody has the address.
    pub fn new(address: SocketAddr) -> io::Result<Self> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        Ok(Self { _socket: socket })
    }
}

/// A number nobody else in this run has: the standard library seeds its hash maps from the system's randomness.
pub fn random() -> u64 {
    RandomState::new().hash_one(())
}
