//! The process: reads the command line, starts the logs, runs one instance.

use std::{process::ExitCode, time::Duration};

use emnetchain::{
    cli::{self, Task},
    config::{Config, Sources},
    console::{self, Exit},
    instance::{self, offline},
    logging,
};

/// Longest time in which a failed instance drops what it holds; a thread of it may hang.
const DROP_MAX: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let exit = match cli::start() {
        Task::Nothing(exit) => exit,
        Task::Backup { data_dir, file } => offline::backup(&data_dir, &file),
        Task::Check { data_dir } => offline::check(&data_dir),
        Task::Restore { file, data_dir, node } => offline::restore(&file, &data_dir, node),
        Task::Serve { config, sources } => serve(*config, sources),
    };
    exit.into()
}

/// Runs an instance to its end. A panic in it is an internal error like any other.
fn serve(config: Config, sources: Sources) -> Exit {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            console::complain(&format!("the process cannot have threads: {error}"));
            return Exit::Internal;
        }
    };
    let traces = config.otlp_endpoint.as_ref().map(|to| (to, config.node_id));
    let logs = {
        let _within = runtime.enter();
        logging::start(&config.log_level, config.log_format, traces)
    };
    let logs = match logs {
        Ok(logs) => logs,
        Err(why) => {
            console::complain(&why);
            return Exit::Usage;
        }
    };
    let instance = instance::run(config, sources, logs.clone());
    let exit = runtime.block_on(async { tokio::spawn(instance).await }).unwrap_or(Exit::Internal);
    logs.finish();
    // What the instance wanted to finish is finished; nothing else may hold up the end. One that
    // failed drops what it holds first: connections, of which the kernel may not soon dispose.
    if exit == Exit::Clean {
        runtime.shutdown_background();
    } else {
        runtime.shutdown_timeout(DROP_MAX);
    }
    exit
}
