//! The other tests of this binary in virtual machines with Debian's kernel, under software emulation: on cgroup v2, in
//! a file system of this binary, `nm`, `nm-shim` and a busybox; and those of systemd.rs, in a small Debian.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For the machine to boot, test and end.
const LIMIT: Duration = Duration::from_secs(420);
/// One machine at a time: two would be too slow for what is tried in them.
static TURN: Mutex<()> = Mutex::new(());
/// What cannot be tried there: a machine in the machine.
const SKIPPED: &str = "vm::";

/// What is tried there last: it changes the clock of all.
const CLOCK: &str = "clock::";
/// What the kernel of a machine is told whose clock tests may change.
pub const CLOCK_IS_FREE: &str = "samza.test-may-set-clock";

/// Where Debian's package ca-certificates has them.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /var/tmp
chmod 1777 /tmp
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up
hostname vm
{{test}} --test-threads 2 --skip {{skipped}} --skip {{clock}} 2>&1 && {{test}} {{clock}} --nocapture 2>&1
echo "the tests ended with $?"
poweroff -f
"#;

/// Runs the tests in Debian, and ends the machine.
const TESTS: &str = r#"[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/sh -c '/usr/local/bin/node-tests systemd:: --ignored --test-threads 1; echo "the tests ended with $?"'
ExecStopPost=/usr/bin/systemctl poweroff --force --force
StandardOutput=file:/dev/ttyS0
StandardError=file:/dev/ttyS0
"#;

/// Runs a command; its output, or a panic with what it complained of.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a script of deploy/vm fetches once per machine.
fn fetched(script: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/vm").join(script);
    PathBuf::from(run(&mut Command::new(script)).trim())
}

/// Copies a program and the libraries that it is linked with to where they are on this machine.
fn install(tree: &Path, program: &Path) {
    let linked = run(Command::new("ldd").arg(program));
    let libraries = linked.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
    for file in libraries.chain([program]) {
        let target = tree.join(file.strip_prefix("/").unwrap());
        if !target.exists() {
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(file, target).unwrap();
        }
    }
}

/// A file system with this binary and what it needs.
fn bare_tree(tree: &Path) {
    for empty in ["bin", "proc", "sys", "dev", "tmp", "var/tmp", "root"] {
        fs::create_dir_all(tree.join(empty)).unwrap();
    }
    let this = std::env::current_exe().unwrap();
    let nm = Path::new(env!("CARGO_BIN_EXE_nm"));
    for program in [&this, nm, &nm.with_file_name("nm-shim")] {
        install(tree, program);
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    // Who can fetch from the web, and from S3, knows certificates.
    fs::create_dir_all(tree.join("etc/ssl/certs")).unwrap();
    fs::copy(CERTIFICATES, tree.join(&CERTIFICATES[1..])).unwrap();
    let init = INIT.replace("{{test}}", this.to_str().unwrap()).replace("{{skipped}}", SKIPPED);
    let init = init.replace("{{clock}}", CLOCK);
    let path = tree.join("init");
    fs::write(&path, init).unwrap();
    run(Command::new("chmod").arg("755").arg(&path));
}

/// What is added to Debian: the files where docs/operating-nodes.md has them copied, and a unit that runs the tests.
fn debian_tree(tree: &Path) {
    let put = |from: &Path, to: &str| {
        let to = tree.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    let nm = Path::new(env!("CARGO_BIN_EXE_nm"));
    for home in ["usr/local", "etc/skel/.local"] {
        put(nm, &format!("{home}/bin/nm"));
        put(&nm.with_file_name("nm-shim"), &format!("{home}/bin/nm-shim"));
    }
    put(&std::env::current_exe().unwrap(), "usr/local/bin/node-tests");
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd");
    let (system, user) = ("etc/systemd/system", "etc/skel/.config/systemd/user");
    for (folder, unit) in [
        (system, "nm.service"),
        (system, "nm-containers.service"),
        (user, "nm-user.service"),
        (user, "nm-containers.service"),
    ] {
        put(&units.join(unit), &format!("{folder}/{unit}"));
    }
    fs::write(tree.join(system).join("node-tests.service"), TESTS).unwrap();
    let wants = tree.join(system).join("multi-user.target.wants");
    fs::create_dir_all(&wants).unwrap();
    std::os::unix::fs::symlink("../node-tests.service", wants.join("node-tests.service")).unwrap();
}

/// Boots a machine whose file system is `archives`, one laid over the other, and waits for its end; what it said.
fn boot(folder: &Path, archives: &[PathBuf], append: &str) -> String {
    let (kernel, image, console) = (fetched("kernel.sh"), folder.join("image"), folder.join("console"));
    let mut all = fs::File::create(&image).unwrap();
    for archive in archives {
        std::io::copy(&mut fs::File::open(archive).unwrap(), &mut all).unwrap();
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-smp", "2", "-m", "1536", "-nographic", "-no-reboot", "-nodefaults"])
        .args(["-serial", "stdio", "-append", &format!("console=ttyS0 panic=1 {append}")])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&console).unwrap())
        .spawn()
        .expect("qemu-system-x86_64; `deploy/install-packages.sh vm` installs it");
    let begun = Instant::now();
    while machine.try_wait().unwrap().is_none() {
        if begun.elapsed() > LIMIT {
            machine.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = String::from_utf8_lossy(&fs::read(&console).unwrap()).into_owned();
    println!("{said}");
    println!("the machine ran for {:?}", begun.elapsed());
    said
}

/// The file system as an archive for `boot`.
fn packed(folder: &Path, fill: impl Fn(&Path)) -> PathBuf {
    crate::stage::install_shim();
    let (tree, archive) = (folder.join("tree"), folder.join("archive"));
    fs::create_dir_all(&tree).unwrap();
    fill(&tree);
    let pack = format!("find . | cpio --quiet -o -H newc -R 0:0 > {}", archive.display());
    run(Command::new("sh").args(["-c", &pack]).current_dir(&tree));
    archive
}

#[test]
fn everything_here_holds_on_cgroup_v2_too() {
    let folder = tempfile::tempdir().unwrap();
    let archive = packed(folder.path(), bare_tree);
    let said = boot(folder.path(), &[archive], &format!("loglevel=1 {CLOCK_IS_FREE}"));
    assert!(said.contains("the tests ended with 0"), "tests fail on cgroup v2, or the machine did not boot");
    assert!(!said.contains("the clock stays as it is"), "it did not set its clock");
    assert!(said.contains("limits::") && said.contains("restart::"), "it did not run the tests");
}

#[test]
#[ignore = "it boots a second machine: make soak runs it"]
fn nm_is_a_service_of_systemd_as_root_and_as_a_user() {
    let folder = tempfile::tempdir().unwrap();
    let archive = packed(folder.path(), debian_tree);
    let append = "loglevel=1 rdinit=/usr/lib/systemd/systemd systemd.show_status=0";
    let said = boot(folder.path(), &[fetched("systemd.sh"), archive], append);
    assert!(said.contains("the tests ended with 0"), "tests fail under systemd, or the machine did not boot");
    assert!(
        said.contains("root_nm_outlive") && said.contains("users_nm_outlive"),
        "it did not run the tests"
    );
}
