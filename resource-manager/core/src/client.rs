//! What users ask for: submit, stop, kill, purge.

use std::sync::Arc;

use types::{
    AppId, AppState, Artefact, JobId, JobOutcome, JobSpec, Secrets, StopJob, Timestamp, ToAm, ToNode,
};

use crate::app::{App, AppEvent, app_after};
use crate::command::{Command, Denied, StoredApp};
use crate::timers::TimerKey;
use crate::{NodeIx, RmCore};

/// A submission.
#[derive(Debug, Clone, PartialEq)]
pub struct Submit {
    /// The client's own name of it: the same one twice is one submission.
    pub client_id: String,
    /// The job.
    pub spec: JobSpec,
    /// Whether a live application of the same (name, id) is to be stopped first.
    pub replace: bool,
    /// The application master's binary, pinned now.
    pub app_master: Artefact,
    /// The application's own token, random.
    pub token: String,
    /// The job's secrets: all that the job names.
    pub secrets: Secrets,
}

impl RmCore {
    /// Admits a job. Its application is stored before the answer may leave.
    ///
    /// # Errors
    /// [`Denied::LiveJob`] without `replace`; [`Denied::BadJob`] for one that could never run.
    pub fn submit(
        &mut self,
        now: Timestamp,
        submit: Submit,
        out: &mut Vec<Command>,
    ) -> Result<AppId, Denied> {
        if let Some(app) = self.clients.get(&submit.client_id) {
            return Ok(app.clone());
        }
        admissible(&submit.spec, &submit.secrets)?;
        self.apart_from_others(&submit.spec)?;
        let job = submit.spec.job.clone();
        let former = self.live.get(&job).cloned();
        if let Some(app) = &former
            && !submit.replace
        {
            return Err(Denied::LiveJob { job: job.to_string(), app: app.clone() });
        }
        self.supersede_waiting(now, &job, out);
        let id = AppId(format!("application_{}_{:04}", self.epoch.0, self.next_app));
        self.next_app += 1;
        let order = self.next_order;
        self.next_order += 1;
        let diagnostics = former.as_ref().map(|app| format!("waits for {app} to stop")).unwrap_or_default();
        let stored = StoredApp {
            app: id.clone(),
            client_id: submit.client_id,
            spec: Arc::new(submit.spec),
            app_master: submit.app_master,
            token: submit.token,
            secrets: submit.secrets,
            submitted_unix_ms: self.unix_ms(now),
            state: AppState::Accepted,
            kill: false,
            diagnostics,
            ended_unix_ms: None,
            attempt: 1,
            master: None,
            registered: false,
            waits_for: former.clone(),
        };
        let app = App { recovered: false, ..App::from_stored(stored, order, now) };
        self.clients.insert(app.client_id.clone(), id.clone());
        self.orders.insert(order, id.clone());
        self.apps.insert(id.clone(), app);
        self.persist(&id, out);
        match former {
            None => {
                self.live.insert(job, id.clone());
                self.queue_master(now, &id);
            }
            Some(former) => {
                let why = format!("replaced by {id}");
                self.stop_app(now, &former, false, &why, out);
            }
        }
        Ok(id)
    }

    /// No live job has names so much like this one's that the two would share a topic or an owner.
    fn apart_from_others(&self, spec: &JobSpec) -> Result<(), Denied> {
        let alive = self.apps.values().filter(|app| !app.state.is_over());
        match alive.filter_map(|app| types::collision(spec, &app.spec)).next() {
            Some(why) => Err(Denied::BadJob(format!("job {}: {why}", spec.job))),
            None => Ok(()),
        }
    }

    /// A job that waited to replace another and is now itself replaced never starts.
    fn supersede_waiting(&mut self, now: Timestamp, job: &JobId, out: &mut Vec<Command>) {
        let waiting: Vec<AppId> = self
            .apps
            .values()
            .filter(|app| app.job() == job && app.waits_for.is_some() && !app.state.is_over())
            .map(|app| app.id.clone())
            .collect();
        for app in waiting {
            self.end_app(now, &app, &JobOutcome::Killed, "replaced before it started", out);
        }
    }

    /// Stops (with a last commit) or kills (without) an application named by its id, its job's `<name>-<id>`, or
    /// its job's name if only one id of it is live. Asking again is fine.
    ///
    /// # Errors
    /// [`Denied::UnknownApp`], [`Denied::Over`].
    pub fn stop(
        &mut self,
        now: Timestamp,
        name: &str,
        kill: bool,
        out: &mut Vec<Command>,
    ) -> Result<AppId, Denied> {
        let id = self.find(name).ok_or_else(|| Denied::UnknownApp(name.to_owned()))?;
        if self.known(&id).state.is_over() {
            return Err(Denied::Over(id));
        }
        let why = if kill { "killed by a user" } else { "stopped by a user" };
        self.stop_app(now, &id, kill, why, out);
        Ok(id)
    }

    /// Has containers of a live application commit and stop, and keeps their slots empty for `for_ms`; 0 lets them
    /// start again.
    ///
    /// # Errors
    /// [`Denied::UnknownApp`], [`Denied::Over`]; [`Denied::NoMaster`] if there is nobody to tell.
    pub fn hold(
        &mut self,
        name: &str,
        slots: Vec<u32>,
        for_ms: u64,
        out: &mut Vec<Command>,
    ) -> Result<AppId, Denied> {
        let id = self.find(name).ok_or_else(|| Denied::UnknownApp(name.to_owned()))?;
        let app = self.known(&id);
        if app.state.is_over() {
            return Err(Denied::Over(id));
        }
        if app.session.is_none() {
            return Err(Denied::NoMaster(id));
        }
        self.to_am(&id, ToAm::Hold { slots, for_ms }, out);
        Ok(id)
    }

    pub(crate) fn stop_app(
        &mut self,
        now: Timestamp,
        id: &AppId,
        kill: bool,
        why: &str,
        out: &mut Vec<Command>,
    ) {
        let app = self.known_mut(id);
        if !app.registered || app.waits_for.is_some() {
            // No attempt ever registered, so there is no container whose tasks would need fencing.
            let outcome = if kill { JobOutcome::Killed } else { JobOutcome::Finished };
            return self.end_app(now, id, &outcome, &format!("{why} before it started"), out);
        }
        if app.state == AppState::Stopping && (app.kill || !kill) {
            return;
        }
        app.state = app_after(app.state, &AppEvent::StopAsked);
        app.diagnostics = why.to_owned();
        if kill {
            app.kill = true;
            app.kill_since = Some(now);
        }
        let session = app.session;
        self.persist(id, out);
        self.to_am(id, ToAm::Stop(StopJob { kill }), out);
        if kill && session.is_none() {
            return self.end_app(now, id, &JobOutcome::Killed, why, out);
        }
        self.timers.arm(TimerKey::App(id.clone()), now);
        // Its master may be between attempts: the next one does the stop, at once.
        self.known_mut(id).not_before = now;
        self.queue_master(now, id);
    }

    /// Removes a job's local state from every connected node.
    ///
    /// # Errors
    /// [`Denied::LiveJob`] while an application of it is live.
    pub fn purge(&mut self, _now: Timestamp, job: &JobId, out: &mut Vec<Command>) -> Result<(), Denied> {
        if let Some(app) = self.live.get(job) {
            return Err(Denied::LiveJob { job: job.to_string(), app: app.clone() });
        }
        let nodes: Vec<NodeIx> = self.nodes.iter().map(|(ix, _)| ix).collect();
        for ix in nodes {
            self.to_node(ix, ToNode::Purge { job: job.clone() }, out);
        }
        Ok(())
    }

    /// The application that `name` means: an id; else the live, else the newest one of job `<name>-<id>`; else that
    /// of the job's name alone.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<AppId> {
        if let Some(app) = self.apps.get(&AppId(name.to_owned())) {
            return Some(app.id.clone());
        }
        let newest = |matches: &dyn Fn(&JobId) -> bool| {
            self.apps
                .values()
                .filter(|app| matches(app.job()))
                .max_by_key(|app| (!app.state.is_over(), app.waits_for.is_none(), app.order))
                .map(|app| app.id.clone())
        };
        newest(&|job| job.to_string() == name).or_else(|| newest(&|job| job.name == name))
    }
}

fn admissible(spec: &JobSpec, secrets: &Secrets) -> Result<(), Denied> {
    let bad = |why: &str| Err(Denied::BadJob(format!("job {}: {why}", spec.job)));
    if spec.job.name.is_empty() {
        return bad("[job] name is empty");
    }
    if spec.containers.count == 0 {
        return bad("[containers] count is 0; it must be 1 or more");
    }
    if spec.package.artefact.is_none() && spec.package.command.is_empty() {
        return bad("nothing to run: upload an artefact or give [package] command");
    }
    if !spec.package.secrets.keys().eq(secrets.0.keys()) {
        return bad("the secrets sent with it are not those that [package.secrets] names");
    }
    if secrets.bytes() > Secrets::MAX_BYTES || !secrets.0.keys().all(|name| Secrets::is_name(name)) {
        return bad("its secrets are too large, or not named as files can be");
    }
    Ok(())
}
