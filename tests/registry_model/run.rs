//! Runs one sequence against the registry, the model and two replicas, and makes a failing
//! sequence short.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use emnetchain::{
    codec,
    ids::Timestamp,
    registry::{Applied, Effect, Image, Meta, Proposal, Record, Registry, Serial, Table},
    storage::{RunningDigest, digest},
};

use crate::{
    generate::{Generator, Step, Weights},
    model::Model,
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
    /// Whether the registry checks itself after every command, which takes half the time.
    thorough: bool,
}

impl Run {
    fn step(&mut self, step: &Step) -> Result<Vec<Effect>, String> {
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
        equal("the model's effects", &applied.effects, &expected)?;
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
        if self.thorough {
            self.check()?;
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

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, ours: &T, other: &T) -> Result<(), String> {
    if ours == other {
        return Ok(());
    }
    Err(format!("{what} differ(s)\n  registry: {}\n  other: {}", plain(ours), plain(other)))
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

/// Leaves out whatever is not needed for a failure.
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
