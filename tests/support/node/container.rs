//! A container: a process that is the first one of its own, in the network of its pod, with files of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Capabilities, PodSecurityContext, SecurityContext};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::images::Image;

/// Makes the root folder `$1` and runs the rest of the arguments in it, after what stands in `$3`, and writes the id of the
/// process to the file `$2`. The root is read-only where `$4` says so. The folders of the machine's programs are those of
/// every image.
const ENTER: &str = r#"
set -e
PATH=/usr/sbin:/usr/bin:/sbin:/bin
root=$1 pid=$2 mounts=$3 read_only=$4
shift 4
read -r own _ </proc/self/stat
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir dev etc proc run sys tmp usr var
chmod 1777 tmp
ln -s ../run var/run
for folder in bin sbin lib lib32 lib64; do
  [ ! -h "/$folder" ] || cp -P "/$folder" .
  [ -h "/$folder" ] || [ ! -d "/$folder" ] || { mkdir "$folder"; mount --bind "/$folder" "$folder"; }
done
mount -o bind,ro /usr usr
mount -t tmpfs tmpfs usr/local
mount --bind /dev dev
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t proc proc proc
for file in passwd group nsswitch.conf ld.so.cache; do
  [ ! -e "/etc/$file" ] || cp "/etc/$file" etc
done
eval "$mounts"
[ "$read_only" = no ] || mount -o remount,ro "$root"
echo "$own" >"$pid.new"
mv "$pid.new" "$pid"
exec chroot "$root" /usr/bin/setpriv "$@"
"#;

/// How often to look whether a container has its files.
const LOOK: Duration = Duration::from_millis(10);

/// What a process in a container is started with.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// Arguments of setpriv.
    pub privileges: Vec<String>,
    pub env: Vec<(String, String)>,
    pub command: Vec<String>,
}

impl Process {
    /// The arguments of setpriv that start it.
    fn args(&self, command: &[String]) -> Vec<String> {
        let mut args = self.privileges.clone();
        args.extend(["--", "/usr/bin/env", "-i"].map(str::to_owned));
        args.extend(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        args.extend_from_slice(command);
        args
    }
}

/// The arguments of setpriv that give a process what the security contexts and the image say.
pub(crate) fn privileges(
    pod: Option<&PodSecurityContext>,
    own: Option<&SecurityContext>,
    image: &Image,
) -> Result<Vec<String>, String> {
    let user = own.and_then(|own| own.run_as_user).or(pod.and_then(|pod| pod.run_as_user));
    let group = own.and_then(|own| own.run_as_group).or(pod.and_then(|pod| pod.run_as_group));
    let (user, group) = (user.unwrap_or(image.user), group.unwrap_or(0));
    let non_root = own.and_then(|own| own.run_as_non_root);
    if non_root.or(pod.and_then(|pod| pod.run_as_non_root)) == Some(true) && user == 0 {
        return Err("it has runAsNonRoot, and its user is 0".to_owned());
    }
    let mut args = vec![format!("--reuid={user}"), format!("--regid={group}")];
    match pod.and_then(|pod| pod.fs_group) {
        Some(of_files) => args.push(format!("--groups={of_files}")),
        None => args.push("--clear-groups".to_owned()),
    }
    args.push(format!("--bounding-set={}", bounds(own.and_then(|own| own.capabilities.as_ref()))));
    args.push("--inh-caps=-all".to_owned());
    if own.and_then(|own| own.allow_privilege_escalation) == Some(false) {
        args.push("--no-new-privs".to_owned());
    }
    Ok(args)
}

/// The capabilities of a container, in the words of setpriv: those of common container runtimes unless it says others.
fn bounds(asked: Option<&Capabilities>) -> String {
    const USUAL: [&str; 14] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SYS_CHROOT",
        "MKNOD",
        "AUDIT_WRITE",
        "SETFCAP",
    ];
    let dropped = asked.and_then(|asked| asked.drop.as_deref()).unwrap_or_default();
    let added = asked.and_then(|asked| asked.add.as_deref()).unwrap_or_default();
    let kept =
        USUAL.into_iter().filter(|name| !dropped.iter().any(|drop| drop == "ALL" || drop == name));
    let all = kept.chain(added.iter().map(String::as_str));
    let all: Vec<String> = all.map(|name| format!("+{}", name.to_lowercase())).collect();
    [vec!["-all".to_owned()], all].concat().join(",")
}

/// What is mounted into a container.
#[derive(Debug)]
pub(crate) struct Mount {
    pub from: PathBuf,
    /// An absolute path in the container.
    pub to: String,
    pub read_only: bool,
}

/// Lines of a shell that mount these at their places below the current folder. The outer ones come first.
fn mount_lines(mounts: &mut [Mount]) -> String {
    mounts.sort_by_key(|mount| mount.to.len());
    mounts.iter().map(mount_line).collect()
}

fn mount_line(mount: &Mount) -> String {
    let from = quoted(&mount.from.display().to_string());
    let to = quoted(&format!(".{}", mount.to));
    let options = if mount.read_only { "bind,ro" } else { "bind" };
    let make = match mount.from.is_dir() {
        true => format!("mkdir -p {to}"),
        false => format!("mkdir -p \"$(dirname {to})\"; touch {to}"),
    };
    format!("{make}; mount -o {options} {from} {to}\n")
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Where and how a container runs.
pub(crate) struct Plan<'a> {
    /// A process in the network of the pod.
    pub sandbox: u32,
    /// A folder for the root, the log and the process id.
    pub folder: &'a Path,
    pub read_only: bool,
    pub mounts: Vec<Mount>,
    pub process: Process,
}

/// A container that was started.
pub(crate) struct Running {
    process: Process,
    root: PathBuf,
    pid: PathBuf,
    /// What started it, and kills it when it is killed.
    parent: Pid,
    ended: watch::Receiver<Option<ExitStatus>>,
    _watcher: JoinSet<()>,
}

impl Running {
    /// Starts a container; its output is appended to `log` in its folder.
    ///
    /// # Errors
    /// The programs for that do not run here.
    pub(crate) fn start(plan: Plan<'_>) -> Result<Self, String> {
        let Plan { sandbox, folder, read_only, mut mounts, process } = plan;
        let root = folder.join("root");
        std::fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        let pid = folder.join("pid");
        let log = File::options().create(true).append(true).open(folder.join("log"));
        let log = log.map_err(|error| format!("{}: {error}", folder.display()))?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        let mut child = Command::new("nsenter")
            .arg(format!("--target={sandbox}"))
            .args(["--net", "--", "unshare", "--mount", "--pid", "--fork", "--kill-child"])
            .args(["sh", "-c", ENTER, "sh"])
            .arg(&root)
            .arg(&pid)
            .arg(mount_lines(&mut mounts))
            .arg(if read_only { "yes" } else { "no" })
            .args(process.args(&process.command))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("nsenter: {error}"))?;
        let parent = child.id().and_then(|id| i32::try_from(id).ok()).ok_or("it has no id")?;
        let (tell, ended) = watch::channel(None);
        let mut watcher = JoinSet::new();
        watcher.spawn(async move {
            let status = child.wait().await.expect("a child can be waited for");
            tell.send_replace(Some(status));
        });
        Ok(Self { process, root, pid, parent: Pid::from_raw(parent), ended, _watcher: watcher })
    }

    /// How it ended, once it has.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// Waits for its end.
    pub(crate) fn ended(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            let status = ended.wait_for(Option::is_some).await.map(|status| *status);
            match status {
                Ok(status) => status.expect("it is some"),
                // The container is gone, and whoever asks with it.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// The id of its process, once it has all of its files.
    fn id(&self) -> Option<Pid> {
        std::fs::read_to_string(&self.pid).ok()?.trim().parse().ok().map(Pid::from_raw)
    }

    /// Tells it to end. It may have ended already. If its process has not got all of its files yet, it is killed.
    pub(crate) fn terminate(&self) {
        match self.id() {
            _ if self.status().is_some() => {}
            Some(id) => drop(kill(id, Signal::SIGTERM)),
            None => self.kill(),
        }
    }

    pub(crate) fn kill(&self) {
        if self.status().is_none() {
            let _ = kill(self.parent, Signal::SIGKILL);
        }
    }

    /// Runs a command in the container and returns its output.
    ///
    /// # Errors
    /// It fails, or the container has ended.
    pub(crate) async fn exec(&self, command: &[String]) -> Result<String, String> {
        let id = loop {
            match (self.status(), self.id()) {
                (Some(status), _) => return Err(format!("the container has ended: {status}")),
                (None, Some(id)) => break id,
                // It is getting its files.
                (None, None) => tokio::time::sleep(LOOK).await,
            }
        };
        let output = Command::new("nsenter")
            .arg(format!("--target={id}"))
            .args(["--mount", "--net", "--pid", "--", "chroot"])
            .arg(&self.root)
            .arg("/usr/bin/setpriv")
            .args(self.process.args(command))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| format!("nsenter: {error}"))?;
        let [said, errors] =
            [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        match output.status.success() {
            true => Ok(said),
            false => Err(format!("{}: {said}{errors}", output.status)),
        }
    }
}
