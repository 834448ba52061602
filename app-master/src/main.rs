//! `app-master`: runs one job. Started by a node manager; everything it needs is in its environment. It dials the
//! resource manager, listens for its containers, and reads and writes the job's metadata on Kafka. When it dies
//! its containers run on, and the next attempt adopts them.

mod coordinator;
mod driver;
#[cfg(test)]
mod driver_tests;
mod facts;
mod kafka_side;
#[cfg(test)]
mod kafka_tests;
mod metrics;
mod settings;
mod systems;
#[cfg(test)]
mod testing;

use std::sync::mpsc as blocking;

use am_core::{AmCore, AmIdentity};
use anyhow::Context;
use clap::Parser;
use daemon::Shutdown;
use proto::Token;
use task_core::ownership::OwnerRecord;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::coordinator::Writer;
use crate::driver::{Channels, Driver, Input};
use crate::kafka_side::KafkaSide;
use crate::settings::Settings;
use crate::systems::{KafkaSystems, Systems};

/// Runs one job: builds its model, asks for containers and keeps them running.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "\
Started by a node manager, never by hand: all its settings come from the environment (SAMZA_APP_ID,
SAMZA_ATTEMPT, SAMZA_CONTAINER_ID, SAMZA_JOB_FILE, SAMZA_RM, SAMZA_NODE_HOST, SAMZA_TOKEN_FILE).

Exit codes: 0 the job is over; 143 (130) SIGTERM (SIGINT) told it to end; 90 a newer application master has taken over; 1 anything else.

Example: samza-submit job.toml    (the resource manager then has a node manager start an app-master)"
)]
struct Arguments {}

fn main() -> anyhow::Result<()> {
    let Arguments {} = Arguments::parse();
    daemon::init_logs("app-master");
    // With fewer, the connection that is one too many tells it.
    let _ = daemon::raise_open_files();
    let settings = Settings::from_env()?;
    // Two threads: it decides little and must stay small.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(async {
        let owner = OwnerRecord::of_app_master(&settings.spec.job, settings.container.0);
        let writer = Writer { job: settings.spec.job.clone(), attempt: settings.attempt, owner };
        let systems = Box::new(KafkaSystems::of(&settings.spec));
        serve_job(settings, writer, systems, Shutdown::on_signals()).await
    })?;
    // The Kafka thread may be inside a call of many seconds: the process does not wait for it.
    std::process::exit(code)
}

/// Serves one job to its end; the exit code.
async fn serve_job(
    settings: Settings,
    writer: Writer,
    systems: Box<dyn Systems>,
    shutdown: Shutdown,
) -> anyhow::Result<i32> {
    let token =
        settings.token_file.as_deref().map(Token::load).transpose().context("reading SAMZA_TOKEN_FILE")?;
    let host = settings.listen_host();
    let listener =
        TcpListener::bind((host.as_str(), 0)).await.with_context(|| format!("listening on {host}"))?;
    let listen = listener.local_addr()?;
    daemon::require_token_unless_loopback(listen, token.as_ref())?;
    let address = format!("{host}:{}", listen.port());
    println!(
        "app-master: {} attempt {} for {} on {address}",
        settings.app, settings.attempt, settings.spec.job
    );

    let (to_inbox, inbox) = mpsc::channel::<Input>(1024);
    let (callers_in, mut callers) = mpsc::channel(256);
    let routes = tonic::service::Routes::new(proto::container_service(callers_in)).into_axum_router();
    let looks = to_inbox.clone();
    let routes = routes.route("/metrics", axum::routing::get(async move || metrics_page(looks).await));
    tokio::spawn(daemon::serve_grpc(listener, routes.into(), token.clone(), shutdown.clone()));
    let calls = to_inbox.clone();
    tokio::spawn(async move {
        while let Some(caller) = callers.recv().await {
            if calls.send(Input::Caller(Box::new(caller))).await.is_err() {
                return;
            }
        }
    });

    let (kafka, requests) = blocking::channel();
    let (spec, answers) = (settings.spec.clone(), to_inbox.clone());
    std::thread::Builder::new().name("kafka".into()).spawn(move || {
        let side = KafkaSide::new(spec, writer, systems);
        side.serve(&requests, &|answer| drop(answers.blocking_send(Input::Kafka(answer))));
    })?;

    let core = AmCore::new(AmIdentity {
        app: settings.app.clone(),
        attempt: settings.attempt,
        spec: settings.spec.clone(),
        unix_offset_ms: daemon::unix_ms().saturating_sub(daemon::boottime_ms()),
    });
    let driver = Driver::new(core, settings, address, token, Channels { inbox, to_inbox, kafka });
    Ok(driver.run(shutdown).await)
}

/// Has the driver ask the containers.
async fn metrics_page(driver: mpsc::Sender<Input>) -> axum::response::Response {
    use axum::http::{StatusCode, header};
    use axum::response::IntoResponse;
    let (answer, page) = oneshot::channel();
    if driver.send(Input::Look(answer)).await.is_ok()
        && let Ok(page) = page.await
    {
        return ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the application master is about to end\n").into_response()
}
