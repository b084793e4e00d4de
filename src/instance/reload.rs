//! The reload at SIGHUP: the configuration, as far as a running instance can
//! take new values, its certificates and the operators' secret. A fault is logged, and
//! leaves everything as it was.

use tokio::sync::watch;

use super::listeners::server_options;
use crate::{
    cluster::{Cluster, found::Founding, tcp::Security},
    config::{Changes, Config, Sources},
    logging::LogHandle,
    metrics::Metrics,
    ops::http::gate::AdminToken,
    registry::Policy,
    server::{LiveOptions, ServerOptions},
};

/// Reads again what can be read again.
pub(super) struct Reload {
    sources: Sources,
    logs: LogHandle,
    /// The configuration in force.
    config: Config,
    options: watch::Sender<ServerOptions>,
    policy: watch::Sender<Policy>,
    token: watch::Sender<AdminToken>,
}

/// Where the parts of an instance see what is in force.
pub(super) struct Live {
    pub(super) options: LiveOptions,
    pub(super) policy: watch::Receiver<Policy>,
    pub(super) token: watch::Receiver<AdminToken>,
}

impl Reload {
    /// Puts this configuration into force.
    ///
    /// # Errors
    /// If the operators' secret cannot be used: one line that says why.
    pub(super) fn new(
        config: Config,
        sources: Sources,
        logs: LogHandle,
    ) -> Result<(Self, Live), String> {
        let token = AdminToken::read(config.admin_token_file.as_deref())?;
        let (options, live_options) = watch::channel(server_options(&config));
        let (policy, live_policy) = watch::channel(config.policy());
        let (token, live_token) = watch::channel(token);
        let live = Live { options: live_options, policy: live_policy, token: live_token };
        Ok((Self { sources, logs, config, options, policy, token }, live))
    }

    /// Returns the configuration in force.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Returns where lines for operators go.
    pub(super) fn logs(&self) -> &LogHandle {
        &self.logs
    }

    /// Does what SIGHUP asks for.
    pub(super) fn carry_out(&mut self, security: Option<&Security>, metrics: &Metrics) {
        match self.read() {
            Ok(Changes { adopted, postponed }) => {
                if adopted.is_empty() {
                    tracing::info!("the configuration was reloaded; nothing has changed");
                } else {
                    let changed = adopted.join(" ");
                    tracing::info!(changed, "the configuration was reloaded");
                }
                if !postponed.is_empty() {
                    let keys = postponed.join(" ");
                    tracing::warn!(keys, "these keys have changed too, and need a restart");
                }
            }
            Err(why) => tracing::error!("the configuration was not reloaded: {why}"),
        }
        if let Some(Security::Tls(tls)) = security {
            match tls.reload() {
                Ok(are_others) => {
                    let told = if are_others { "they have changed" } else { "they are the same" };
                    tracing::info!("the certificates were reloaded; {told}");
                    metrics.raft_certificate.set(tls.good_until());
                    tls.tell_dates();
                }
                Err(error) => tracing::error!("the certificates were not reloaded: {error}"),
            }
        }
    }

    fn read(&mut self) -> Result<Changes, String> {
        let new = self.sources.read().map_err(|faults| faults.to_string())?;
        let token = AdminToken::read(new.admin_token_file.as_deref())?;
        let mut changes = self.config.adopt(new);
        // The file is where it was, and what is in it is another.
        let name = "admin_token_file";
        if *self.token.borrow() != token && !changes.adopted.contains(&name) {
            changes.adopted.push(name);
        }
        self.logs.set_level(&self.config.log_level);
        self.options.send_replace(server_options(&self.config));
        self.policy.send_replace(self.config.policy());
        self.token.send_replace(token);
        Ok(changes)
    }
}

/// Has the registry follow the settings of this instance; the cluster takes the latest of any.
pub(super) async fn follow(
    cluster: Cluster,
    founding: Founding,
    mut policy: watch::Receiver<Policy>,
) -> String {
    while policy.changed().await.is_ok() {
        let new = *policy.borrow_and_update();
        if let Err(error) = cluster.settle(&founding, new).await {
            return error.to_string();
        }
    }
    "the configuration is no longer read".to_owned()
}
