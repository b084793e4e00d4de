//! Runs one sequence against the registry, the model and two replicas, and makes a failing
//! sequence short.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use emnetchain::{
    codec,
    ids::Timestamp,
    registry::{Applied, Command, Effect, Image, Meta, Proposal, Record, Registry, Serial, Table},
    storage::{RunningDigest, digest},
};

use crate::{
    generate::{Generator, Step, Weights},
    model::{Brought, Model, Planted, view_of},
    told::{Seen, Told},
};

/// Everything that watches one sequence.
#[derive(Default)]
struct Run {
    registry: Registry,
    model: Model,
    told: Told,
    /// Rebuilt from the image at rest, now and then.
    replica: Registry,
    /// The image as the changed records alone write it.
    disk: BTreeMap<Serial, Vec<u8>>,
    /// Follows the changed records alone.
    running: RunningDigest,
    log: Vec<(Proposal, Applied)>,
    /// Whether all is compared and checked after every command, which takes most of the time.
    thorough: bool,
}

impl Run {
    /// What time brings about comes first, so that each watcher sees it apart from the command.
    fn step(&mut self, step: &Step) -> Result<Vec<Effect>, String> {
        // A window of no length is over when it opens, and carried out by the next command.
        let is_due = self.registry.next_deadline().is_some_and(|at| at <= self.registry.now());
        if step.wait_ms == 0 && !is_due {
            return self.command(step);
        }
        let mut effects = self.command(&Step { command: Command::Tick, ..step.clone() })?;
        effects.extend(self.command(&Step { wait_ms: 0, rebuild: false, ..step.clone() })?);
        Ok(effects)
    }

    fn command(&mut self, step: &Step) -> Result<Vec<Effect>, String> {
        if step.rebuild {
            self.replica = self.rebuilt()?;
        }
        let since = self.registry.now();
        let at = Timestamp(since.plus_ms(step.wait_ms).0.saturating_sub(step.behind_ms));
        let commands = vec![step.command.clone()];
        let proposal = Proposal { at, batch: None, commands };
        let before = self.registry.totals().clients;
        let applied = self.registry.apply(&proposal);
        let expected = self.model.apply(at, &step.command);
        same_effects(&applied.effects, &expected)?;
        equal("the model's deadline", &self.registry.next_deadline(), &self.model.next_deadline())?;
        self.told.see(Seen {
            command: &step.command,
            applied: &applied,
            since,
            now: self.registry.now(),
            policy: self.registry.policy(),
            known: &self.model.sockets(),
            clients: (before, self.registry.totals().clients),
        })?;
        match self.thorough {
            true => self.check()?,
            false => equal("the totals", &self.registry.totals(), &self.model.totals())?,
        }
        equal("a replica's work", &applied, &self.replica.apply(&proposal))?;
        equal("its deadline", &self.registry.next_deadline(), &self.replica.next_deadline())?;
        let changed = self.registry.take_changed();
        self.running.follow(&changed, self.registry.image());
        if self.thorough {
            let image = self.registry.image();
            equal("the digest", &digest(image), &self.running.digest(&image.meta))?;
        }
        for serial in changed.into_keys() {
            match self.registry.image().records.get(serial) {
                Some(record) => self.disk.insert(serial, codec::encode(record)),
                None => self.disk.remove(&serial),
            };
        }
        let effects = applied.effects.clone();
        self.log.push((proposal, applied));
        Ok(effects)
    }

    fn check(&self) -> Result<(), String> {
        equal("what the model knows", &view_of(&self.registry), &self.model.view())?;
        self.registry.check().map_err(|violation| format!("check: {violation}"))
    }

    /// A registry made of nothing but the bytes on disk, or of a copy of the image.
    fn rebuilt(&self) -> Result<Registry, String> {
        if self.log.len().is_multiple_of(2) {
            let image = self.registry.image().clone();
            return Registry::from_image(image).map_err(|violation| format!("image: {violation}"));
        }
        let image = self.disk_image()?;
        Registry::from_image(image).map_err(|violation| format!("disk: {violation}"))
    }

    fn disk_image(&self) -> Result<Image, String> {
        let meta = codec::encode(&self.registry.image().meta);
        let meta: Meta = codec::decode(&meta).map_err(|error| error.to_string())?;
        let mut records = Table::default();
        for (serial, bytes) in &self.disk {
            let record: Record = codec::decode(bytes).map_err(|error| error.to_string())?;
            records.insert(*serial, record);
        }
        Ok(Image { meta, records })
    }

    /// Equal logs give equal registries, also when their commands travel in larger proposals.
    fn finish(&self) -> Result<(), String> {
        self.check()?;
        let mut replay = Registry::default();
        let mut log = self.log.iter().peekable();
        while let Some((proposal, applied)) = log.next() {
            let (mut proposal, mut effects) = (proposal.clone(), applied.effects.clone());
            while let Some((more, applied)) = log.next_if(|(next, _)| next.at == proposal.at) {
                proposal.commands.extend(more.commands.iter().cloned());
                effects.extend(applied.effects.iter().cloned());
            }
            equal("the replay's effects", &effects, &replay.apply(&proposal).effects)?;
        }
        equal("the replica's image", self.registry.image(), self.replica.image())?;
        equal("the replay's image", self.registry.image(), replay.image())?;
        equal("the replay's deadline", &self.registry.next_deadline(), &replay.next_deadline())?;
        equal("the disk's image", self.registry.image(), &self.disk_image()?)
    }
}

/// Every session is told the same in the same order, and so are the two of a pair. What happens in
/// different places at once has no promised order.
fn same_effects(ours: &[Effect], expected: &Brought) -> Result<(), String> {
    let sort = |effects: &[Effect]| {
        let mut effects = effects.to_vec();
        effects.sort_by_key(Effect::session); // keeps the order within a session
        effects
    };
    equal("the model's effects", &sort(ours), &sort(&expected.effects))?;
    let place = |effect: &Effect| ours.iter().position(|other| other == effect);
    let is_late = |(first, second): &&(Effect, Effect)| place(first) > place(second);
    match expected.pairs.iter().find(is_late) {
        Some((first, second)) => Err(format!("{first:?} must come before {second:?}")),
        None => Ok(()),
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, ours: &T, other: &T) -> Result<(), String> {
    if ours == other {
        return Ok(());
    }
    let (ours, other) = (plain(ours), plain(other));
    let only = |mine: &str, its: &str| {
        let lines = mine.lines().filter(|line| !its.lines().any(|other| other == *line));
        lines.collect::<Vec<_>>().join("\n    ")
    };
    let (only_ours, only_other) = (only(&ours, &other), only(&other, &ours));
    if only_ours.is_empty() || only_other.is_empty() {
        return Err(format!("{what} differ(s)\n  registry: {ours}\n  other: {other}"));
    }
    Err(format!("{what} differ(s)\n  only registry: {only_ours}\n  only other: {only_other}"))
}

/// Runs the sequence of a seed; a failure is told with the shortest sequence that still shows it.
pub(crate) fn run_seed(seed: u64, weights: Weights) -> Result<(), String> {
    let mut steps = Vec::new();
    let mut generator = Generator::new(seed, weights);
    let mut run = Run { thorough: seed.is_multiple_of(4), ..Run::default() };
    let outcome = guarded(|| {
        while let Some(step) = generator.step() {
            steps.push(step.clone());
            let effects = run.step(&step)?;
            generator.hear(&effects);
        }
        run.finish()
    });
    outcome.map_err(|first| {
        let steps = shrink(steps);
        let listed = steps.iter().map(|step| plain(step) + "\n").collect::<String>();
        listed + &replay(&steps).err().unwrap_or(first)
    })
}

/// Whether the sequence of a seed finds a mistake of the model.
pub(crate) fn finds(seed: u64, weights: Weights, planted: Planted) -> bool {
    let mut generator = Generator::new(seed, weights);
    let mut run = Run { thorough: true, model: Model::with(planted), ..Run::default() };
    let outcome = guarded(|| {
        while let Some(step) = generator.step() {
            let effects = run.step(&step)?;
            generator.hear(&effects);
        }
        Ok(())
    });
    outcome.is_err()
}

fn replay(steps: &[Step]) -> Result<(), String> {
    let mut run = Run { thorough: true, ..Run::default() };
    guarded(|| {
        for step in steps {
            run.step(step)?;
        }
        run.finish()
    })
}

fn guarded(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("a panic".to_owned()))
}

const SIMPLER: [fn(&mut Step); 3] =
    [|step| step.wait_ms = 0, |step| step.behind_ms = 0, |step| step.rebuild = false];

/// Leaves out all that is not needed for a failure.
fn shrink(mut steps: Vec<Step>) -> Vec<Step> {
    loop {
        let before = format!("{steps:?}");
        for n in (0..steps.len()).rev() {
            let mut fewer = steps.clone();
            fewer.remove(n);
            if replay(&fewer).is_err() {
                steps = fewer;
            }
        }
        for n in 0..steps.len() {
            for change in SIMPLER {
                let mut simpler = steps.clone();
                change(&mut simpler[n]);
                if replay(&simpler).is_err() {
                    steps = simpler;
                }
            }
        }
        if format!("{steps:?}") == before {
            return steps;
        }
    }
}

/// Debug text without what every line would repeat.
fn plain(value: &impl std::fmt::Debug) -> String {
    let words = "Step SessionId InstanceId Incarnation Socket ChainName RepairId HeadAddr TailAddr \
                 OrphanAddr instance: incarnation: connection: 198.51.100.";
    let text = words.split(' ').fold(format!("{value:?}"), |text, word| text.replace(word, ""));
    text.replace("}, ", "},\n    ")
}
