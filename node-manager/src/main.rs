//! nm, the node manager: offers a machine, runs containers in cgroups, keeps their state and logs.

mod age;
mod args;
mod cgroup;
#[cfg(test)]
mod damage;
mod doctor;
mod driver;
mod grpc;
mod hands;
mod health;
mod jobs;
mod launch;
mod localize;
mod logs;
mod origins;
mod points;
mod reach;
mod root;
mod session;
mod sources;
mod state;
mod unpack;
mod usage;
mod users;
mod watch;

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nm_core::{Core, Event};
use proto::Token;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use types::{NodeHello, NodeId, Resource, StateEntry};

use crate::args::Args;
use crate::cgroup::Cgroups;
use crate::driver::{Driver, Inbox};
use crate::hands::Hands;
use crate::launch::{Launcher, Wall};
use crate::localize::Localizer;
use crate::root::Root;
use crate::sources::Sources;
use crate::unpack::Bounds;
use crate::users::Users;

/// Files and connections that nm has open for each container.
const FILES_EACH: u64 = 4;
/// Those for hundreds of containers.
const FILES: u64 = 4_096;
/// How long the first look at local state may keep nm from joining.
const SCAN: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(args::Verb::Doctor { output }) = args.command {
        return doctor::run(&args, output);
    }
    daemon::init_logs("nm");
    // Whatever nm's own was: containers go through folders of ours, and begin with the usual one.
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    let files = daemon::raise_open_files();
    if files < FILES {
        tracing::warn!(
            files,
            "few files may be open: each container needs {FILES_EACH}; raise the hard limit (LimitNOFILE)"
        );
    }
    let token = args.token_file.as_deref().map(Token::load).transpose()?;
    daemon::require_token_unless_loopback(args.listen, token.as_ref())?;
    let hosts = hosts(&args)?;
    let node = args.node_id.clone().unwrap_or_else(|| hosts[0].clone());
    let total = total(&args)?;
    let users = Users::choose(args.user.as_deref(), args.allow_root, args.uids)?;
    let root = Arc::new(Root::open(args.root.as_deref().context("--root")?)?);
    let walls = Wall::chosen(&args.sandbox, root.path(), &users)?;
    localize::remove_drafts(&root).context("the cache")?;
    reach::check(root.path(), &users)?;
    cgroup::be_spared();
    tracing::info!("containers run as {users}");
    let (cgroups, holds) =
        cgroup::detect(args.cgroup_parent.as_deref(), &node, total.cpu_millis, args.unlimited)?;
    let cgroups: Arc<dyn Cgroups> = cgroups.into();
    if args.unlimited {
        tracing::warn!("{}", cgroups.describe());
    } else {
        tracing::info!("limits: {}; {}", cgroups.describe(), cgroup::in_words(&holds));
    }
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("--listen {}", args.listen))?;
    let address = advertised(listener.local_addr()?, &hosts);
    let hello = NodeHello {
        node: NodeId(node.clone()),
        incarnation: root.incarnation()?,
        total,
        rack: args.rack.clone(),
        labels: args::labels(&args.labels)?,
        address: address.clone(),
        containers: Vec::new(),
        state: Vec::new(),
        lease_lapsed: false,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hosts: hosts.clone(),
    };
    let launcher = Arc::new(Launcher {
        shim: shim()?,
        users,
        known: Arc::default(),
        bounds: Bounds::of(args.cache_size),
        walls,
        pids: args.container_pids,
        log_bytes: args.log_size,
        rm: args.rm.clone(),
        node_id: node.clone(),
        node_host: hosts[0].clone(),
        rack: args.rack.clone(),
    });
    println!("nm: node {node}, {total}, logs {address}, resource manager {}", args.rm);
    serve(&args, token, root, cgroups, launcher, hello, listener).await
}

/// Takes over what runs, then serves until a signal. Containers stay.
async fn serve(
    args: &Args,
    token: Option<Token>,
    root: Arc<Root>,
    cgroups: Arc<dyn Cgroups>,
    launcher: Arc<Launcher>,
    hello: NodeHello,
    listener: TcpListener,
) -> Result<()> {
    let shutdown = daemon::Shutdown::on_signals();
    let (inbox, inbox_rx) = mpsc::unbounded_channel::<Inbox>();
    let (reader, known) = (launcher.users.example(), launcher.known.clone());
    let sources = Sources::new(args.rm.clone(), token.clone(), args::origins(args), reader);
    let localizer = Arc::new(Localizer::new(sources, args.cache_size));
    let hands = Hands {
        root: root.clone(),
        cgroups: cgroups.clone(),
        launcher,
        localizer,
        inbox: inbox.clone(),
        turns: Arc::default(),
    };
    let mut core = Core::new(hello.incarnation.clone(), root.top_epoch());
    let recovering = hands.clone();
    let incarnation = hello.incarnation.clone();
    let left = tokio::task::spawn_blocking(move || recovering.recover(&incarnation)).await??;
    let mut out = Vec::new();
    core.recover(driver::now(), left, &mut out);
    hands::carry_out_recovery(&hands, out);
    let state_sent = first_look(&root, &inbox).await?;
    let driver = Driver {
        core,
        root: root.clone(),
        cgroups,
        hands,
        hello,
        inbox: inbox.clone(),
        known: known.clone(),
        session: None,
        shims: HashMap::new(),
        preparing: HashMap::new(),
        meter: Some(Box::default()),
        tell_usage: false,
        state_sent,
        state_scan: false,
        state_at: None,
        state_looked: driver::now(),
        logs: Arc::new(logs::Bound::new(args.logs_total)),
        logs_at: None,
    };
    driver.publish();
    let logs = grpc::Logs { root, known, shutdown: shutdown.clone() };
    let routes = tonic::service::Routes::new(proto::node_log_service(logs));
    let serving = tokio::spawn(daemon::serve_grpc(listener, routes, token.clone(), shutdown.clone()));
    let telling = inbox.clone();
    let tell = move |unhealthy| telling.send(Inbox::Core(Event::Health { unhealthy })).is_ok();
    let health = tokio::spawn(args::checks(args, driver.root.path())?.watch(tell));
    let session = tokio::spawn(session::run(args.rm.clone(), token, inbox));
    driver.run(inbox_rx, shutdown.clone()).await;
    session.abort();
    health.abort();
    serving.await??;
    tracing::info!("ended; containers go on");
    Ok(())
}

/// The local state; none where there is so much that looking at it takes long: then it is told when that is done.
async fn first_look(root: &Arc<Root>, inbox: &mpsc::UnboundedSender<Inbox>) -> Result<Vec<StateEntry>> {
    let scanning = root.clone();
    let mut scan = tokio::task::spawn_blocking(move || state::scan(&scanning));
    if let Ok(found) = tokio::time::timeout(SCAN, &mut scan).await {
        return Ok(found?);
    }
    tracing::warn!("there is much local state to look at; it is told when that is done");
    let telling = inbox.clone();
    tokio::spawn(async move {
        if let Ok(found) = scan.await {
            // The driver is gone only at shutdown.
            let _ = telling.send(Inbox::State(found));
        }
    });
    Ok(Vec::new())
}

/// nm-shim lies beside nm.
fn shim() -> Result<PathBuf> {
    let own = std::env::current_exe().context("own path")?;
    let shim = own.with_file_name("nm-shim");
    ensure!(shim.is_file(), "{} is missing: install nm-shim beside nm", shim.display());
    Ok(shim)
}

/// The names this machine is known by.
fn hosts(args: &Args) -> Result<Vec<String>> {
    if !args.hosts.is_empty() {
        ensure!(args.hosts.iter().all(|host| !host.is_empty()), "--host must not be empty");
        return Ok(args.hosts.clone());
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("host name")?;
    let mut hosts = vec![name.trim().to_owned()];
    // The address that this machine has towards the resource manager; nothing is sent.
    let towards = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect(&args.rm)?;
        socket.local_addr()
    });
    if let Ok(address) = towards {
        hosts.push(address.ip().to_string());
    }
    Ok(hosts)
}

/// What this machine offers.
fn total(args: &Args) -> Result<Resource> {
    let memory_bytes = match &args.memory {
        Some(text) => args::size("--memory", text)?,
        None => {
            let mut system = sysinfo::System::new().context("this machine's memory; say --memory")?;
            system.refresh_memory();
            let all = system.cgroup_limits().map_or(system.total_memory(), |limits| limits.total_memory);
            all - all / 8
        }
    };
    let cores = match args.cpu {
        Some(cores) => cores,
        None => std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64),
    };
    ensure!((0.001..=65_536.0).contains(&cores), "--cpu {cores}: valid is a number of cores such as 1.5");
    Ok(Resource { memory_bytes, cpu_millis: (cores * 1000.0).round() as u32 })
}

/// Where others reach the listener: an address of all interfaces is none, so the first host name stands for it.
fn advertised(bound: SocketAddr, hosts: &[String]) -> String {
    if bound.ip().is_unspecified() { format!("{}:{}", hosts[0], bound.port()) } else { bound.to_string() }
}
