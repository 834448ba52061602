//! The other tests of this binary on cgroup v2: in a virtual machine with Debian's kernel, under software emulation.
//! Its whole file system is this binary, `nm`, `nm-shim` and a busybox, in the same places as here, be it below /tmp.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// For the machine to boot, test and end.
const LIMIT: Duration = Duration::from_secs(420);
/// What cannot be tried there: a machine in the machine.
const SKIPPED: &str = "vm::";

/// What is tried there last: it changes the clock of all.
const CLOCK: &str = "clock::";
/// What the kernel of a machine is told whose clock tests may change.
pub const CLOCK_IS_FREE: &str = "samza.test-may-set-clock";

const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /var/tmp
cp -a /tmp/. /var/tmp
mount --move /var/tmp /tmp
mount -t tmpfs none /var/tmp
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up
hostname vm
{{test}} --test-threads 2 --skip {{skipped}} --skip {{clock}} 2>&1 && {{test}} {{clock}} --nocapture 2>&1
echo "the tests ended with $?"
poweroff -f
"#;

/// Runs a command; its output, or a panic with what it complained of.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The kernel, fetched once per machine.
fn kernel() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/vm/kernel.sh");
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

/// The file system as a compressed archive.
fn image(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    for empty in ["bin", "proc", "sys", "dev", "tmp", "var/tmp", "root"] {
        fs::create_dir_all(tree.join(empty)).unwrap();
    }
    let this = std::env::current_exe().unwrap();
    let nm = Path::new(env!("CARGO_BIN_EXE_nm"));
    for program in [&this, nm, &nm.with_file_name("nm-shim")] {
        install(&tree, program);
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    let init = INIT.replace("{{test}}", this.to_str().unwrap()).replace("{{skipped}}", SKIPPED);
    let init = init.replace("{{clock}}", CLOCK);
    let path = tree.join("init");
    fs::write(&path, init).unwrap();
    run(Command::new("chmod").arg("755").arg(&path));
    let image = folder.join("image.gz");
    let pack = format!("find . | cpio --quiet -o -H newc | gzip -1 > {}", image.display());
    run(Command::new("sh").args(["-c", &pack]).current_dir(&tree));
    image
}

#[test]
fn everything_here_holds_on_cgroup_v2_too() {
    crate::stage::install_shim();
    let folder = tempfile::tempdir().unwrap();
    let (kernel, image) = (kernel(), image(folder.path()));
    let console = folder.path().join("console");
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-smp", "2", "-m", "1536", "-nographic", "-no-reboot", "-nodefaults"])
        .args(["-serial", "stdio", "-append", &format!("console=ttyS0 loglevel=1 panic=1 {CLOCK_IS_FREE}")])
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
    assert!(said.contains("the tests ended with 0"), "tests fail on cgroup v2, or the machine did not boot");
    assert!(!said.contains("the clock stays as it is"), "it did not set its clock");
    assert!(said.contains("limits::") && said.contains("restart::"), "it did not run the tests");
}
