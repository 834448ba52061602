//! A network of machines on one machine: a namespace for each node and one, the hub, for the resource manager, the
//! brokers and the test's own clients. Two links join each node to the hub, and the one to the resource manager can be
//! cut. A namespace lives as long as a process or a thread in it, and nobody else names it: whatever way the test
//! ends, nothing is left.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where the resource manager is; nodes have .2 and on.
const RM_NET: &str = "10.77.0";
/// Where the brokers are, and where nodes reach each other.
const KAFKA_NET: &str = "10.77.1";
/// Where links lead that are cut on the way: a switch with nobody else on it.
const VOID: &str = "void";

/// Adds a switch, whose own hardware address is no port's and stays when ports come and go. Each has another: the hub
/// would take what was sent to one for its own, at whichever it arrives.
fn switch(name: &str, number: u8) -> String {
    format!("link add name {name} address 02:00:00:00:00:{number:02x} type bridge\nlink set dev {name} up\n")
}

/// One network namespace.
#[derive(Debug)]
pub struct Namespace {
    door: File,
    holder: Child,
}

impl Namespace {
    fn new() -> Namespace {
        // It ends with its input, which the kernel closes when this process ends.
        let script = "ip link set dev lo up && echo up && exec cat > /dev/null";
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut said = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut said).expect("it can be read");
        assert_eq!(said, "up\n", "a namespace needs root, and `ip` (deploy/install-packages.sh network)");
        let door = File::open(format!("/proc/{}/ns/net", holder.id())).expect("the namespace is there");
        Namespace { door, holder }
    }

    /// Does `work` on a thread that is in this namespace, as all threads and processes are that it makes.
    ///
    /// # Panics
    /// `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                move_into_link_name_space(self.door.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter it");
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs lines of `ip` in it.
    fn ip(&self, lines: &str) {
        let output = self.inside(|| {
            let mut ip = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("ip runs");
            ip.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("it reads");
            ip.wait_with_output().expect("it ends")
        });
        assert!(output.status.success(), "ip: {lines}{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Where a link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// At the node, whose interface goes down: whoever sends is told at once that there is no way.
    Node,
    /// At the resource manager's end: the node has no carrier, and its kernel knows that nothing leaves.
    ResourceManager,
    /// On the way: both ends have a carrier, and what is sent vanishes.
    Between,
}

/// The hub, the nodes and the links between them.
#[derive(Debug)]
pub struct Network {
    hub: Namespace,
    nodes: Vec<Namespace>,
}

impl Network {
    /// A network of `nodes` nodes, all links up.
    ///
    /// # Panics
    /// It cannot be made: it needs root and `ip`.
    #[must_use]
    pub fn of(nodes: usize) -> Arc<Network> {
        let hub = Namespace::new();
        for (name, number, net) in [("rms", 1, RM_NET), ("kafkas", 2, KAFKA_NET)] {
            hub.ip(&switch(name, number));
            hub.ip(&format!("address add {net}.1/24 dev {name}\n"));
        }
        hub.ip(&switch(VOID, 3));
        let network = Network { hub, nodes: (0..nodes).map(|_| Namespace::new()).collect() };
        for place in 0..nodes {
            network.join(place);
        }
        Arc::new(network)
    }

    fn join(&self, place: usize) {
        let node = &self.nodes[place];
        for (link, net) in [("rm", RM_NET), ("kafka", KAFKA_NET)] {
            let far = format!("{link}{place}");
            self.hub.ip(&format!(
                "link add name {far} type veth peer name {link} netns {}\n\
                 link set dev {far} master {link}s up\n",
                node.holder.id()
            ));
            node.ip(&format!("address add {net}.{}/24 dev {link}\nlink set dev {link} up\n", place + 2));
        }
    }

    /// Where the resource manager and the brokers are, and where a test should be.
    #[must_use]
    pub fn hub(&self) -> &Namespace {
        &self.hub
    }

    /// Where node `place` is.
    #[must_use]
    pub fn node(&self, place: usize) -> &Namespace {
        &self.nodes[place]
    }

    /// How many nodes have a place in it.
    #[must_use]
    pub fn places(&self) -> usize {
        self.nodes.len()
    }

    /// The address of the hub that is reached over the links that can be cut.
    #[must_use]
    pub fn rm_host() -> String {
        format!("{RM_NET}.1")
    }

    /// The address of the hub that is reached over the other links.
    #[must_use]
    pub fn kafka_host() -> String {
        format!("{KAFKA_NET}.1")
    }

    /// The address at which the other nodes reach node `place`.
    #[must_use]
    pub fn node_host(place: usize) -> String {
        format!("{KAFKA_NET}.{}", place + 2)
    }

    /// Cuts the link between node `place` and the resource manager.
    pub fn cut(&self, place: usize, at: At) {
        match at {
            At::Node => self.nodes[place].ip("link set dev rm down\n"),
            At::ResourceManager => self.hub.ip(&format!("link set dev rm{place} down\n")),
            At::Between => self.hub.ip(&format!("link set dev rm{place} master {VOID}\n")),
        }
    }

    /// Mends the link between node `place` and the resource manager.
    pub fn mend(&self, place: usize) {
        self.nodes[place].ip("link set dev rm up\n");
        self.hub.ip(&format!("link set dev rm{place} master rms up\n"));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_link_that_is_cut_loses_what_is_sent_until_it_is_mended_and_the_other_link_stays() {
        let network = Network::of(2);
        let listen = |host: String| network.hub().inside(|| TcpListener::bind((host, 0)).unwrap());
        let dial = |at| network.node(1).inside(move || TcpStream::connect(at).unwrap());
        for at in [At::Node, At::ResourceManager, At::Between] {
            let listener = listen(Network::rm_host());
            let mut near = dial(listener.local_addr().unwrap());
            let (mut far, _) = listener.accept().unwrap();
            network.cut(1, at);
            near.write_all(b"a").unwrap();
            far.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "{at:?}");
            let other = listen(Network::kafka_host());
            dial(other.local_addr().unwrap());
            network.mend(1);
            far.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            assert_eq!(far.read(&mut [0]).unwrap(), 1, "{at:?}");
        }
    }
}
