//! Child processes that cannot outlive the test, and ports for them to listen on.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;

/// Runs the program `$2...` and terminates it (SIGTERM, then SIGKILL after `$0` tenths of a second) when stdin closes,
/// which also happens if the test is killed. Finally removes the folder `$1`, if given. The exit status is the
/// program's. The supervisor itself closes stdout and stderr, because writing to a killed reader would end it.
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

/// How to start a program under [`Supervised`].
pub(crate) struct Launch<'a> {
    pub program: &'a Path,
    pub args: Vec<String>,
    pub stdout: Stdio,
    pub stderr: Stdio,
    /// Tenths of a second between SIGTERM and SIGKILL.
    pub grace_tenths: u32,
    /// A folder to remove after the program has ended, even if the test was killed.
    pub remove: Option<&'a Path>,
}

/// A child process that ends when this value is dropped or this process is killed.
///
/// A small shell supervises it: it waits on a pipe that only this process holds, in its own process group so that
/// Ctrl-C cannot kill the supervisor before it has cleaned up.
#[derive(Debug)]
pub(crate) struct Supervised {
    keeper: Child,
}

impl Supervised {
    /// Starts the program. A program that cannot be executed exits with status 126 or 127.
    pub(crate) fn spawn(launch: Launch<'_>) -> io::Result<Self> {
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

    /// Takes the reading end of the program's stderr, if it was started with [`Stdio::piped`].
    pub(crate) fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.keeper.stderr.take()
    }

    /// The program's exit status if it has ended.
    pub(crate) fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.keeper.try_wait()
    }

    /// Waits for the program to exit by itself.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        // Child::wait would close the pipe and thus terminate the program.
        let pipe = self.keeper.stdin.take();
        let status = self.keeper.wait();
        self.keeper.stdin = pipe;
        status
    }

    /// Sends a signal to the program itself, which has this name.
    #[cfg(target_os = "linux")]
    pub(crate) fn signal(&self, name: &str, signal: nix::sys::signal::Signal) {
        let keeper = self.keeper.id();
        let children = format!("/proc/{keeper}/task/{keeper}/children");
        let children = std::fs::read_to_string(children).unwrap();
        let mut pids = children.split_whitespace();
        let pid = pids
            .find(|pid| {
                let known = std::fs::read_to_string(format!("/proc/{pid}/comm"));
                known.is_ok_and(|known| known.trim() == name)
            })
            .expect("the program runs");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), signal).unwrap();
    }

    /// Asks the program to exit without waiting.
    pub(crate) fn begin_stop(&mut self) {
        drop(self.keeper.stdin.take());
    }

    /// Terminates the program and waits for it.
    pub(crate) fn stop(&mut self) {
        self.begin_stop();
        // An error means that the child has already exited.
        let _ = self.keeper.wait();
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A loopback TCP port on which nothing currently listens.
///
/// It is below the ephemeral port ranges of Linux and macOS: a client that keeps connecting to an ephemeral port while
/// its server is down can end up connected to itself. Another process may still take the port first, so the caller must
/// retry with another one.
///
/// # Panics
/// If no port can be bound, which means that the machine has no loopback interface.
pub(crate) fn free_port() -> u16 {
    const FIRST: u64 = 16_384;
    const COUNT: u64 = 16_000;
    // Other tests of this process may not have bound theirs yet.
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    for _ in 0..COUNT {
        let port = (FIRST + random() % COUNT) as u16;
        let is_new = GIVEN.lock().unwrap().insert(port);
        if is_new && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free TCP port on 127.0.0.1 between {FIRST} and {}", FIRST + COUNT);
}

/// A reserved address that only programs started by this process can bind, provided that they share ports like Envoy.
#[derive(Debug)]
pub(crate) struct Reserved {
    _socket: tokio::net::TcpSocket,
}

impl Reserved {
    /// # Errors
    /// The address is in use.
    pub(crate) fn new(address: SocketAddr) -> io::Result<Self> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        Ok(Self { _socket: socket })
    }
}

/// A random number: the standard library seeds its hash maps from the system's randomness.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(())
}
