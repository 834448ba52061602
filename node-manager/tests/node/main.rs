//! The node manager on a real machine: real processes, real cgroups, the real `nm`; only the resource manager is
//! played. The same tests run once more on cgroup v2, in a small virtual machine; in another, nm is a service of systemd.

mod artefacts;
mod clock;
mod containers;
mod crashes;
mod exits;
mod faults;
mod hostile;
mod limits;
mod logs;
mod machines;
mod restart;
mod stage;
mod start_orders;
mod systemd;
mod users;
mod vm;
