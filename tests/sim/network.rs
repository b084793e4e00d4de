//! The network between the instances: every direction of every pair has its delay and can be cut;
//! connections can be reset. Listeners are registered here, so an instance that is down refuses.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use emnetchain::{
    cluster::transport::{Lane, Stream, Transport},
    ids::InstanceId,
    raft::Member,
};
use futures_util::future::BoxFuture;
use tokio::{sync::mpsc, time::sleep};

use crate::{
    chance::Chance,
    now,
    pipe::{End, Pipe},
    planted::Planted,
};

/// How long a connection may take to be opened.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// How often a way that is cut is tried again.
const TRY_EVERY: Duration = Duration::from_millis(100);

/// A way on which bytes take no longer is a good one.
const GOOD_MS: u64 = 30;

/// From one instance to another.
pub(crate) type Way = (InstanceId, InstanceId);

/// A connection that was opened to an instance, and by which one.
pub(crate) type Incoming = (Box<dyn Stream>, InstanceId);

/// The network; clones share it.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<State>>);

struct State {
    chance: Chance,
    delays: BTreeMap<Way, (u64, u64)>,
    cut: BTreeSet<Way>,
    listeners: BTreeMap<InstanceId, mpsc::UnboundedSender<Incoming>>,
    /// Where the instances listen that have moved.
    addresses: BTreeMap<InstanceId, String>,
    planted: Planted,
    connections: Vec<(Way, Weak<Pipe>, Weak<Pipe>)>,
}

impl State {
    /// How long bytes take on a way, in whole milliseconds as tokio's timers count.
    fn delay(&mut self, way: Way) -> Duration {
        let (least, most) = self.delays.get(&way).copied().unwrap_or((1, 3));
        Duration::from_millis(self.chance.between(least, most))
    }

    /// The pipes of a way in either role, with whether bytes go from the connecting side.
    fn pipes(&mut self, way: Way) -> Vec<Arc<Pipe>> {
        self.connections
            .retain(|(_, there, back)| there.strong_count() > 0 || back.strong_count() > 0);
        let pipes = self.connections.iter().filter_map(|((from, to), there, back)| {
            if (*from, *to) == way {
                there.upgrade()
            } else if (*to, *from) == way {
                back.upgrade()
            } else {
                None
            }
        });
        pipes.collect()
    }
}

impl Network {
    /// A network whose delays follow from a seed.
    pub(crate) fn new(chance: Chance, planted: Planted) -> Self {
        let (delays, cut, listeners) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let (addresses, connections) = (BTreeMap::new(), vec![]);
        Self(Arc::new(Mutex::new(State {
            chance,
            delays,
            cut,
            listeners,
            addresses,
            planted,
            connections,
        })))
    }

    /// An instance listens at another address from its next start on.
    pub(crate) fn move_to(&self, at: InstanceId, address: &str) {
        self.lock().addresses.insert(at, address.to_owned());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// How `from` reaches the others.
    pub(crate) fn transport(&self, from: InstanceId) -> Arc<dyn Transport> {
        let first_addresses = Mutex::default();
        Arc::new(Reach { network: self.clone(), from, first_addresses })
    }

    /// An instance listens; what listened in its place before does not any more.
    pub(crate) fn listen(&self, at: InstanceId) -> mpsc::UnboundedReceiver<Incoming> {
        let (sender, incoming) = mpsc::unbounded_channel();
        self.lock().listeners.insert(at, sender);
        incoming
    }

    /// An instance is gone: its connections break and it no longer listens.
    pub(crate) fn silence(&self, at: InstanceId) {
        let mut state = self.lock();
        state.listeners.remove(&at);
        state.connections.retain(|((from, to), there, back)| {
            let its = *from == at || *to == at;
            let pipes = [there, back].into_iter().filter_map(Weak::upgrade);
            pipes.filter(|_| its).for_each(|pipe| pipe.reset());
            !its
        });
    }

    /// Breaks every connection between two instances.
    pub(crate) fn reset(&self, (a, b): Way) {
        let mut state = self.lock();
        let pipes = [state.pipes((a, b)), state.pipes((b, a))].concat();
        pipes.iter().for_each(|pipe| pipe.reset());
    }

    /// Cuts a way, or heals it.
    pub(crate) fn set_cut(&self, way: Way, cut: bool) {
        let mut state = self.lock();
        let changed = if cut { state.cut.insert(way) } else { state.cut.remove(&way) };
        if changed {
            state.pipes(way).iter().for_each(|pipe| pipe.set_cut(cut));
        }
    }

    /// Whether nothing arrives on a way.
    pub(crate) fn is_cut(&self, way: Way) -> bool {
        self.lock().cut.contains(&way)
    }

    /// Whether bytes arrive on a way, and soon.
    pub(crate) fn is_good(&self, way: Way) -> bool {
        let state = self.lock();
        let most = state.delays.get(&way).map_or(0, |(_, most)| *most);
        !state.cut.contains(&way) && most <= GOOD_MS
    }

    /// From now on bytes take this number of milliseconds on a way.
    pub(crate) fn set_delay(&self, way: Way, least: u64, most: u64) {
        let mut state = self.lock();
        state.delays.insert(way, (least, most));
        for pipe in state.pipes(way) {
            let delay = state.delay(way);
            pipe.set_delay(delay);
        }
    }

    async fn connect(self, (from, to): Way, address: String) -> io::Result<End> {
        let deadline = now() + CONNECT_MAX;
        loop {
            let pause = {
                let mut state = self.lock();
                let open = !state.cut.contains(&(from, to)) && !state.cut.contains(&(to, from));
                let round = state.delay((from, to)) + state.delay((to, from));
                if open { Ok(round) } else { Err(TRY_EVERY) }
            };
            match pause {
                Ok(round) => {
                    sleep(round).await;
                    break;
                }
                Err(pause) if now() + pause < deadline => sleep(pause).await,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        let mut state = self.lock();
        let (there, back) = (state.delay((from, to)), state.delay((to, from)));
        let there = Pipe::new(there, state.cut.contains(&(from, to)));
        let back = Pipe::new(back, state.cut.contains(&(to, from)));
        let (near, far) = (End::new(&back, &there), End::new(&there, &back));
        let is_there = state.addresses.get(&to).is_none_or(|known| *known == address);
        let listener = state.listeners.get(&to).filter(|_| is_there);
        let listener = listener.ok_or(io::ErrorKind::ConnectionRefused)?;
        let incoming: Incoming = (Box::new(far), from);
        listener.send(incoming).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        state.connections.push(((from, to), Arc::downgrade(&there), Arc::downgrade(&back)));
        Ok(near)
    }
}

/// How one instance reaches the others.
struct Reach {
    network: Network,
    from: InstanceId,
    /// Where each of the others was first said to be.
    first_addresses: Mutex<BTreeMap<InstanceId, String>>,
}

impl Transport for Reach {
    fn connect(
        &self,
        target: InstanceId,
        member: &Member,
        _: Lane,
    ) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let mut address = member.raft_addr.clone();
        if self.network.lock().planted == Planted::OldAddressKept {
            let mut first = self.first_addresses.lock().unwrap();
            address.clone_from(first.entry(target).or_insert(address.clone()));
        }
        let connecting = self.network.clone().connect((self.from, target), address);
        Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Stream>) })
    }
}
