//! The resource manager's process: parse, load, bind, run.

mod artefacts;
mod driver;
mod grpc;
mod logs;
mod lookup;
mod secrets;
mod store;
mod web;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use daemon::Shutdown;
use proto::Token;
use rm_core::{Config, RmCore, View};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tracing::info;
use types::{Artefact, Timestamp};

use artefacts::Artefacts;
use driver::{Driver, Inbox};
use store::Store;

/// Messages that wait for the driver at most; senders wait when it is full.
const INBOX: usize = 4096;

/// Admits applications, places their containers on nodes, serves the web UI.
#[derive(Debug, Parser)]
#[command(
    name = "resource-manager",
    version,
    after_help = "Examples:
  resource-manager --data /var/lib/samza/rm
      gRPC on 127.0.0.1:8030, web UI on http://127.0.0.1:8088

  resource-manager --data ./rm --listen 127.0.0.1:0 --http 127.0.0.1:0
      on free ports; they are in ./rm/addresses.json and on the first line of the output

  resource-manager --data /var/lib/samza/rm --listen 10.0.0.5:8030 --http 10.0.0.5:8088 --token-file /etc/samza/token
      for nodes on other machines, which need the same --token-file

It may be killed and started again at any time: applications are in --data, containers run on meanwhile."
)]
struct Args {
    /// Where nodes, application masters and clients connect; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8030", env = "SAMZA_RM_LISTEN")]
    listen: SocketAddr,
    /// Where the web UI listens; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8088", env = "SAMZA_RM_HTTP")]
    http: SocketAddr,
    /// The folder of the store, the artefacts and addresses.json; made if missing.
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// The application master's binary, served to nodes; by default `app-master` beside this program.
    #[arg(long, value_name = "PATH")]
    app_master: Option<PathBuf>,
    /// The file of the cluster's token; required beyond loopback.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long a node may be silent before its containers are replaced.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_lease)]
    lease: Duration,
}

fn parse_lease(text: &str) -> Result<Duration, String> {
    let lease =
        parse_duration(text).ok_or_else(|| format!("`{text}` is not a duration such as 5s or 1500ms"))?;
    if lease < Duration::from_secs(1) {
        return Err("a lease is 1s or longer".to_owned());
    }
    Ok(lease)
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    daemon::init_logs("resource-manager");
    // With fewer, the connection that is one too many tells it.
    let _ = daemon::raise_open_files();
    let shutdown = Shutdown::on_signals();
    serve(args, shutdown).await
}

async fn serve(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    let token = args.token_file.as_deref().map(Token::load).transpose().context("reading --token-file")?;
    daemon::require_token_unless_loopback(args.listen, token.as_ref())?;
    daemon::require_token_unless_loopback(args.http, token.as_ref())?;
    std::fs::create_dir_all(&args.data).with_context(|| format!("making --data {}", args.data.display()))?;
    let (store, epoch, stored) = Store::open(&args.data.join("store.redb"), daemon::unix_ms())?;
    let artefacts = Artefacts::open(args.data.join("artefacts")).context("opening the artefact store")?;
    let artefacts = Arc::new(artefacts);
    let app_master = add_app_master(&artefacts, args.app_master.clone()).await?;

    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("listening on {}", args.listen))?;
    let http = TcpListener::bind(args.http).await.with_context(|| format!("listening on {}", args.http))?;
    announce(&args.data, &listener, &http)?;
    info!(epoch = epoch.0, apps = stored.apps.len(), nodes = stored.nodes.len(), "started");

    let now = Timestamp(daemon::boottime_ms());
    let config = Config {
        unix_at_zero_ms: daemon::unix_ms() - now.0,
        lease_ms: u64::try_from(args.lease.as_millis()).context("--lease is too long")?,
        ..Config::default()
    };
    let core = RmCore::new(config, epoch, now, stored);
    let (to_driver, messages) = mpsc::channel(INBOX);
    let (to_nodes, nodes) = mpsc::channel(INBOX);
    let (to_masters, masters) = mpsc::channel(INBOX);
    let (view_tx, view) = watch::channel(Arc::new(View::default()));
    let driver = Driver::new(core, store, to_driver.clone(), view_tx);
    let logs = logs::NodeLogs::new(token.clone());

    let client = grpc::client::Client {
        driver: to_driver,
        view: view.clone(),
        artefacts: artefacts.clone(),
        app_master,
        logs: logs.clone(),
        token: token.clone(),
        shutdown: shutdown.clone(),
    };
    let routes = tonic::service::Routes::new(client.into_service())
        .add_service(grpc::artefact::service(artefacts))
        .add_service(proto::node_service(to_nodes))
        .add_service(proto::app_master_service(to_masters));
    let secret = match args.http.ip().is_loopback() {
        true => None,
        false => token.as_ref().map(|token| token.text().to_owned()),
    };
    let history = web::History::default();
    tokio::spawn(history.clone().keep(view.clone(), shutdown.clone()));
    let router = web::router(web::Web { view, logs, history, shutdown: shutdown.clone() }, secret);

    let grpc = daemon::serve_grpc(listener, routes, token, shutdown.clone());
    let web = daemon::serve_http(http, router, shutdown.clone());
    let mut listeners = tokio::spawn(async move { tokio::try_join!(grpc, web) });
    let driver = driver.run(Inbox { messages, nodes, masters }, shutdown.clone());
    tokio::select! {
        ended = driver => {
            shutdown.begin();
            ended.context("the driver")?;
            listeners.await.context("a listener's task")??;
        }
        ended = &mut listeners => {
            ended.context("a listener's task")??;
        }
    }
    info!("stopped; containers run on");
    Ok(())
}

async fn add_app_master(artefacts: &Artefacts, path: Option<PathBuf>) -> anyhow::Result<Artefact> {
    let path = match path {
        Some(path) => path,
        None => std::env::current_exe().context("finding this program")?.with_file_name("app-master"),
    };
    let stored = artefacts.add_file(&path).await;
    let (digest, bytes) = stored.with_context(|| {
        format!("the application master's binary {}; name it with --app-master", path.display())
    })?;
    Ok(Artefact { name: "app-master".to_owned(), digest, bytes, from: None })
}

/// Says where it listens: first in `addresses.json`, then on the standard output.
fn announce(data: &Path, grpc: &TcpListener, http: &TcpListener) -> anyhow::Result<()> {
    let (grpc, http) = (grpc.local_addr()?, http.local_addr()?);
    let text = serde_json::json!({ "grpc": grpc.to_string(), "http": http.to_string() }).to_string();
    let path = data.join("addresses.json");
    daemon::write_atomically(&path, text.as_bytes())
        .with_context(|| format!("writing {}", path.display()))?;
    println!("resource-manager: grpc {grpc}, web http://{http}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_written_as_people_write_them() {
        assert_eq!(parse_lease("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_lease("1500ms"), Ok(Duration::from_millis(1500)));
        assert!(parse_lease("5").is_err());
        assert!(parse_lease("100ms").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
