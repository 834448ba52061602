//! What a node is told to run. Derived from state alone, so that a Start that was lost on the way can be said
//! again.

use types::{ContainerId, OnLeaseLoss, Role, StartContainer};

use crate::RmCore;

/// The name of the application master's artefact, and its command.
const APP_MASTER: &str = "app-master";

impl RmCore {
    pub(crate) fn start_of(&self, id: ContainerId) -> StartContainer {
        let container = &self.containers[&id];
        let app = self.known(&container.app);
        let spec = &app.spec;
        let (artefacts, command, env, on_lease_loss) = match container.role {
            Role::AppMaster { .. } => {
                let mut artefact = app.app_master.clone();
                artefact.name = APP_MASTER.to_owned();
                // A master that outlives its node's lease is harmless (its successor fences it in the coordinator
                // topic, containers and we refuse its attempt), and one that did not would die with every pause
                // of ours.
                (vec![artefact], vec![APP_MASTER.to_owned()], Default::default(), OnLeaseLoss::Keep)
            }
            Role::Worker { .. } => {
                let artefacts: Vec<_> = spec.package.artefact.clone().into_iter().collect();
                let command = match (spec.package.command.is_empty(), artefacts.first()) {
                    (true, Some(artefact)) => vec![artefact.name.clone()],
                    (true, None) | (false, _) => spec.package.command.clone(),
                };
                (artefacts, command, spec.package.env.clone(), spec.placement.on_lease_loss)
            }
        };
        StartContainer {
            id,
            app: app.id.clone(),
            job: spec.job.clone(),
            role: container.role,
            resource: container.resource,
            artefacts,
            command,
            env,
            spec: Box::new(spec.as_ref().clone()),
            token: app.token.clone(),
            secrets: app.secrets.clone(),
            am_address: app.address.clone(),
            on_lease_loss,
        }
    }
}
