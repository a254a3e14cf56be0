//! The live plan: reloaded when the directory changes and when somebody asks, all or nothing.
//!
//! What is watched is the *directory*, because editors replace files and Kubernetes swaps a `..data` symlink beside them. A
//! slow look at the content backs the watch up (network mounts, a directory that was itself replaced) and stands in for it
//! where there is none. Whatever woke us, only the content decides: the same bytes are the same generation.
//!
//! A bad set changes nothing but [`Standing`]. The live plan and the old ones that offers still refer to are one pointer, so
//! there is no moment at which an offer's plan is in neither place.

use crate::catalogue::Catalogue;
use crate::clock::UnixSeconds;
use crate::ids::Generation;
use crate::rules::{Files, Plan, check};
use arc_swap::ArcSwap;
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How long after it was replaced a plan can still be found: longer than any offer holds its price (5 minutes).
pub const OLD_PLAN_SECONDS: u64 = 600;
/// Most old plans kept, whatever their age.
pub const MOST_OLD_PLANS: usize = 32;

/// How the rules stand, for `/status` and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The plan in force.
    pub generation: Generation,
    /// Since when it is in force.
    pub loaded_at: UnixSeconds,
    /// Every mistake of the last reload, when it failed; the plan in force is then older than the files.
    pub last_error: Option<Vec<String>>,
    /// Reloads that ended well since start, including those that found nothing new to load.
    pub reloads_ok: u64,
    /// Reloads that were refused since start.
    pub reloads_failed: u64,
}

/// What must be ready before a plan becomes visible (pools built, their secrets read). May veto with sentences; must then
/// leave everything as it was. Called again with the plan in force when a reload is asked for and the files are
/// the same.
pub type Prepare = dyn Fn(&Plan) -> Result<(), Vec<String>> + Send + Sync;
/// Told after every reload, good or bad, when its outcome is visible.
pub type Told = dyn Fn(&Standing) + Send + Sync;

/// The rules in force. Reloading happens on a thread of its own, which ends when this is dropped; no async runtime is needed.
pub struct Rules {
    desk: Arc<Desk>,
    notes: Sender<Note>,
}

impl Rules {
    /// Loads the rule set in `dir` and watches it from then on. The error lists every mistake; without a first good set there
    /// is nothing to serve.
    pub fn start(
        dir: &Path,
        catalogue: Catalogue,
        prepare: impl Fn(&Plan) -> Result<(), Vec<String>> + Send + Sync + 'static,
        told: impl Fn(&Standing) + Send + Sync + 'static,
    ) -> Result<Arc<Self>, Vec<String>> {
        Self::start_paced(dir, catalogue, Box::new(prepare), Box::new(told), Pace::USUAL)
    }

    fn start_paced(
        dir: &Path,
        catalogue: Catalogue,
        prepare: Box<Prepare>,
        told: Box<Told>,
        pace: Pace,
    ) -> Result<Arc<Self>, Vec<String>> {
        let files = Files::read(dir);
        let plan = Arc::new(check(&files, &catalogue).map_err(sentences)?);
        prepare(&plan)?;
        let standing = Standing {
            generation: plan.generation.clone(),
            loaded_at: UnixSeconds::now(),
            last_error: None,
            reloads_ok: 0,
            reloads_failed: 0,
        };
        let desk = Arc::new(Desk {
            dir: dir.to_owned(),
            catalogue,
            shelf: ArcSwap::from_pointee(Shelf { live: plan, old: Vec::new() }),
            standing: ArcSwap::from_pointee(standing),
            prepare,
            told,
        });
        let (notes, inbox) = channel();
        let (seen, registry) = (files.generation(), files.registry_path(dir));
        let reader = Reader { desk: desk.clone(), notes: notes.clone(), seen, may_do_later: false, registry, pace };
        std::thread::Builder::new()
            .name("rules".to_owned())
            .spawn(move || reader.run(&inbox))
            .map_err(|why| vec![format!("the thread that watches the rules cannot start: {why}")])?;
        Ok(Arc::new(Self { desk, notes }))
    }

    /// The plan in force. A request takes it once and keeps it to its receipt.
    pub fn plan(&self) -> Arc<Plan> {
        self.desk.shelf.load().live.clone()
    }

    /// The plan of an offer: the one in force, or one that was replaced less than [`OLD_PLAN_SECONDS`] ago.
    pub fn plan_of(&self, generation: &Generation) -> Option<Arc<Plan>> {
        self.desk.shelf.load().find(generation, UnixSeconds::now()).cloned()
    }

    /// The plans whose offers still live, the newest first.
    pub fn recent(&self) -> Vec<Arc<Plan>> {
        self.desk.shelf.load().recent(UnixSeconds::now())
    }

    /// How the rules stand.
    pub fn standing(&self) -> Arc<Standing> {
        self.desk.standing.load_full()
    }

    /// Asks for a reload now (SIGHUP): files and, through `prepare`, secrets are read again even when nothing seems changed.
    /// Returns at once; the outcome goes to `told` and [`Rules::standing`].
    pub fn reload(&self) {
        // The thread outlives every sender but ours, so this cannot fail while there is somebody to ask.
        let _ = self.notes.send(Note::Asked);
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        let _ = self.notes.send(Note::Stop);
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("dir", &self.desk.dir).field("standing", &self.standing()).finish()
    }
}

/// What wakes the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    Touched,
    Asked,
    Stop,
}

/// How quick the thread is.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Whether the directory is watched at all.
    watched: bool,
    /// So much quiet makes a series of changes one.
    quiet: Duration,
    /// A series that never ends is read after this time.
    patience: Duration,
    /// Between looks when the directory is watched.
    backup: Duration,
    /// Between looks when it is not.
    alone: Duration,
}

impl Pace {
    const USUAL: Self = Self {
        watched: true,
        quiet: Duration::from_millis(300),
        patience: Duration::from_secs(3),
        backup: Duration::from_secs(30),
        alone: Duration::from_secs(2),
    };
}

/// What the thread and everybody else share.
struct Desk {
    dir: PathBuf,
    catalogue: Catalogue,
    shelf: ArcSwap<Shelf>,
    standing: ArcSwap<Standing>,
    prepare: Box<Prepare>,
    told: Box<Told>,
}

impl Desk {
    /// Reads, checks, prepares and only then swaps. Says whether the same files may do later: what was refused is not in them.
    fn reload(&self, files: &Files, why: Why) -> bool {
        let outcome = self.next_plan(files, why != Why::Changed);
        let may_do_later = matches!(outcome, Err(Refused::Unprepared(_)));
        let now = UnixSeconds::now();
        let mut standing = Standing::clone(&self.standing.load());
        match outcome {
            Ok(plan) => {
                standing.reloads_ok += 1;
                standing.last_error = None;
                if let Some(plan) = plan {
                    tracing::info!(generation = %plan.generation, replaced = %standing.generation, "rules loaded");
                    standing.generation = plan.generation.clone();
                    standing.loaded_at = now;
                    let next = self.shelf.load().with(plan, now);
                    self.shelf.store(Arc::new(next));
                }
            }
            Err(Refused::Wrong(mistakes) | Refused::Unprepared(mistakes)) => {
                if why == Why::Again && standing.last_error.as_ref() == Some(&mistakes) {
                    return may_do_later;
                }
                for mistake in &mistakes {
                    tracing::error!(generation = %standing.generation, "rules not loaded, the old ones stay: {mistake}");
                }
                standing.reloads_failed += 1;
                standing.last_error = Some(mistakes);
            }
        }
        self.standing.store(Arc::new(standing.clone()));
        (self.told)(&standing);
        may_do_later
    }

    fn next_plan(&self, files: &Files, prepare_anyway: bool) -> Result<Option<Arc<Plan>>, Refused> {
        let live = self.shelf.load().live.clone();
        if files.generation() == live.generation {
            if prepare_anyway {
                (self.prepare)(&live).map_err(Refused::Unprepared)?;
            }
            return Ok(None);
        }
        let plan = Arc::new(check(files, &self.catalogue).map_err(|mistakes| Refused::Wrong(sentences(mistakes)))?);
        (self.prepare)(&plan).map_err(Refused::Unprepared)?;
        Ok(Some(plan))
    }
}

/// Why files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// They are others than before.
    Changed,
    /// Somebody asked.
    Asked,
    /// What they need was not there the last time; the same refusal is not told twice.
    Again,
}

/// Why a set did not become the plan.
enum Refused {
    /// Its files are wrong.
    Wrong(Vec<String>),
    /// What it needs is not there: a key in a file, for example.
    Unprepared(Vec<String>),
}

/// The thread.
struct Reader {
    desk: Arc<Desk>,
    notes: Sender<Note>,
    /// The content read last, loaded or refused: it is not tried twice unless somebody asks, or it may do later.
    seen: Generation,
    /// It was refused for what is not in its files.
    may_do_later: bool,
    /// The price list that was named last; it may lie in a directory of its own.
    registry: Option<PathBuf>,
    pace: Pace,
}

impl Reader {
    fn run(mut self, inbox: &Receiver<Note>) {
        let mut watcher = self.watch();
        // What changed between the first reading and the watch.
        self.follow(&mut watcher);
        loop {
            let pause = if watcher.is_some() { self.pace.backup } else { self.pace.alone };
            match inbox.recv_timeout(pause) {
                Ok(Note::Touched) => match self.until_quiet(inbox) {
                    Note::Touched => self.follow(&mut watcher),
                    Note::Asked => self.reload(Why::Asked),
                    Note::Stop => return,
                },
                Ok(Note::Asked) => self.reload(Why::Asked),
                Ok(Note::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    if watcher.is_none() {
                        watcher = self.watch();
                    }
                    self.follow(&mut watcher);
                    if self.may_do_later {
                        self.reload(Why::Again);
                    }
                    self.forget();
                }
            }
        }
    }

    /// Reloads when the content is another. Then the directory may be another one under the same name, which the old watch
    /// knows nothing of: watch anew, and look again for what changed in between.
    fn follow(&mut self, watcher: &mut Option<RecommendedWatcher>) {
        if self.look() {
            *watcher = self.watch();
            self.look();
        }
    }

    /// Waits for the end of a series of changes, and says what came of it.
    fn until_quiet(&self, inbox: &Receiver<Note>) -> Note {
        let patience = Instant::now() + self.pace.patience;
        loop {
            let left = patience.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(self.pace.quiet.min(left)) {
                Ok(Note::Touched) if !left.is_zero() => {}
                Ok(note) => return note,
                Err(RecvTimeoutError::Timeout) => return Note::Touched,
                Err(RecvTimeoutError::Disconnected) => return Note::Stop,
            }
        }
    }

    /// Reloads when the content is another. Says whether it was.
    fn look(&mut self) -> bool {
        let files = Files::read(&self.desk.dir);
        let generation = files.generation();
        let changed = generation != self.seen;
        if changed {
            self.seen = generation;
            self.registry = files.registry_path(&self.desk.dir);
            self.may_do_later = self.desk.reload(&files, Why::Changed);
        }
        changed
    }

    fn reload(&mut self, why: Why) {
        let files = Files::read(&self.desk.dir);
        self.seen = files.generation();
        self.registry = files.registry_path(&self.desk.dir);
        self.may_do_later = self.desk.reload(&files, why);
    }

    /// Lets go of old plans whose offers have ended.
    fn forget(&self) {
        let shelf = self.desk.shelf.load();
        if let Some(next) = shelf.without_lapsed(UnixSeconds::now()) {
            self.desk.shelf.store(Arc::new(next));
        }
    }

    fn watch(&self) -> Option<RecommendedWatcher> {
        if !self.pace.watched {
            return None;
        }
        let notes = self.notes.clone();
        let heard = move |event: notify::Result<notify::Event>| {
            // Our own reading is an access too; only what can change content counts.
            let quiet = event.is_ok_and(|event| match event.kind {
                EventKind::Access(kind) => kind != AccessKind::Close(AccessMode::Write),
                _ => false,
            });
            if !quiet {
                let _ = notes.send(Note::Touched);
            }
        };
        let mut watcher = notify::recommended_watcher(heard).inspect_err(unwatched).ok()?;
        watcher.watch(&self.desk.dir, RecursiveMode::NonRecursive).inspect_err(unwatched).ok()?;
        // A directory that is a symlink is replaced by moving another over it, which only its parent sees.
        if self.desk.dir.is_symlink()
            && let Some(parent) = self.desk.dir.parent()
        {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            watcher.watch(parent, RecursiveMode::NonRecursive).inspect_err(unwatched).ok()?;
        }
        // A list that somebody else's job replaces. One that cannot be watched is still looked at.
        if let Some(place) = self.registry.as_deref().and_then(Path::parent).filter(|place| *place != self.desk.dir) {
            let _ = watcher.watch(place, RecursiveMode::NonRecursive).inspect_err(unwatched);
        }
        Some(watcher)
    }
}

fn unwatched(why: &notify::Error) {
    tracing::warn!("the rules are looked at every few seconds, not watched: {why}");
}

/// The plan in force, and those that offers may still refer to.
#[derive(Debug)]
struct Shelf {
    live: Arc<Plan>,
    /// Newest first, with the time at which each was replaced.
    old: Vec<(Arc<Plan>, UnixSeconds)>,
}

impl Shelf {
    fn with(&self, plan: Arc<Plan>, now: UnixSeconds) -> Self {
        let replaced = std::iter::once((self.live.clone(), now)).chain(self.old.iter().cloned());
        let old = replaced
            .filter(|(old, at)| old.generation != plan.generation && !lapsed(*at, now))
            .take(MOST_OLD_PLANS)
            .collect();
        Self { live: plan, old }
    }

    fn find(&self, generation: &Generation, now: UnixSeconds) -> Option<&Arc<Plan>> {
        if self.live.generation == *generation {
            return Some(&self.live);
        }
        self.old.iter().find(|(plan, at)| plan.generation == *generation && !lapsed(*at, now)).map(|(plan, _)| plan)
    }

    fn recent(&self, now: UnixSeconds) -> Vec<Arc<Plan>> {
        let old = self.old.iter().filter(|(_, at)| !lapsed(*at, now)).map(|(plan, _)| plan.clone());
        std::iter::once(self.live.clone()).chain(old).collect()
    }

    /// `None` when there is nothing to let go of.
    fn without_lapsed(&self, now: UnixSeconds) -> Option<Self> {
        let kept: Vec<_> = self.old.iter().filter(|(_, at)| !lapsed(*at, now)).cloned().collect();
        (kept.len() < self.old.len()).then(|| Self { live: self.live.clone(), old: kept })
    }
}

fn lapsed(replaced_at: UnixSeconds, now: UnixSeconds) -> bool {
    now >= replaced_at.plus(OLD_PLAN_SECONDS)
}

fn sentences(mistakes: Vec<crate::written::Mistake>) -> Vec<String> {
    mistakes.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests;
