#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::catalogue::{ProfileAbility, RailAbility};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const MODELS: &str = "[model.a]\nupstream = \"a\"\npool = \"p\"\nprice = { input = \"1\", output = \"1\" }\n";
const ROUTES: &str = "[[route]]\npath = \"/v1\"\nsurface = \"chat\"\ntier = \"t\"\naccept = [\"tempo/charge\"]\n";
const POOLS: &str = "[pool.p]\nprofile = \"vllm\"\nservers = [\"http://127.0.0.1:1\"]\n";

/// A tiers.toml with this flat price.
fn tiers(flat: &str) -> String {
    format!("[tier.t]\nmodels = [\"a\"]\nmax_output_tokens = 8\ncharge = {{ flat = \"{flat}\" }}\n")
}

fn write_set(dir: &Path, flat: &str) {
    for (name, text) in
        [("models.toml", MODELS), ("routes.toml", ROUTES), ("pools.toml", POOLS), ("tiers.toml", &tiers(flat))]
    {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

fn catalogue() -> Catalogue {
    let ability = ProfileAbility::PLAIN;
    Catalogue {
        rails: [("tempo/charge".into(), RailAbility { fixed_amount: true, decimals: 6 })].into(),
        profiles: [("vllm", ability)].into(),
        vocabularies: vec!["bytes"],
    }
}

fn plan(flat: &str) -> Arc<Plan> {
    let tiers = tiers(flat);
    let files = Files::of([
        ("models.toml", MODELS),
        ("routes.toml", ROUTES),
        ("pools.toml", POOLS),
        ("tiers.toml", tiers.as_str()),
    ]);
    Arc::new(check(&files, &catalogue()).unwrap())
}

/// A watched directory, and everything the watch has told.
struct Bench {
    dir: tempfile::TempDir,
    watch: Arc<Rules>,
    told: Receiver<Standing>,
    prepared: Arc<AtomicUsize>,
    veto: Arc<AtomicBool>,
}

const QUICK: Pace = Pace { quiet: Duration::from_millis(40), backup: Duration::from_secs(600), ..Pace::USUAL };

impl Bench {
    fn new(pace: Pace) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_set(dir.path(), "0.01");
        Self::over(dir, |dir| dir.to_owned(), pace)
    }

    fn over(dir: tempfile::TempDir, rules: impl Fn(&Path) -> PathBuf, pace: Pace) -> Self {
        let (tell, told) = channel();
        let (prepared, veto) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, no) = (prepared.clone(), veto.clone());
        let prepare = move |_: &Plan| {
            count.fetch_add(1, Ordering::SeqCst);
            if no.load(Ordering::SeqCst) { Err(vec!["environment variable K is not set".to_owned()]) } else { Ok(()) }
        };
        let tell = Mutex::new(tell);
        let hear = move |standing: &Standing| tell.lock().unwrap().send(standing.clone()).unwrap_or_default();
        let watch =
            Rules::start_paced(&rules(dir.path()), catalogue(), Box::new(prepare), Box::new(hear), pace).unwrap();
        // One reload is asked for and told of, so that the thread is known to watch: what comes is not its first look.
        watch.reload();
        told.recv_timeout(Duration::from_secs(20)).unwrap();
        prepared.store(0, Ordering::SeqCst);
        Self { dir, watch, told, prepared, veto }
    }

    /// As editors save: a new file moved over the old one.
    fn replace(&self, name: &str, text: &str) {
        let old = self.dir.path().join(name);
        let new = old.with_file_name(".new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &old).unwrap();
    }

    fn next(&self) -> Standing {
        self.told.recv_timeout(Duration::from_secs(20)).expect("the watch tells of a reload")
    }

    /// Waits for this price, over whatever is told before.
    fn until(&self, flat: &str) {
        while self.next().generation != plan(flat).generation {}
    }

    /// Everything that happened before this call has been told when it returns.
    fn settled(&self) -> Standing {
        self.watch.reload();
        self.next()
    }
}

#[test]
fn a_file_replaced_by_an_editor_becomes_a_new_plan_and_the_old_one_still_honours_its_offers() {
    let bench = Bench::new(QUICK);
    let first = bench.watch.plan();
    bench.replace("tiers.toml", &tiers("0.02"));
    let standing = bench.next();
    let second = bench.watch.plan();
    assert_eq!(second.generation, plan("0.02").generation);
    assert_eq!((&standing.generation, &standing.last_error, standing.reloads_ok), (&second.generation, &None, 2));
    assert!(Arc::ptr_eq(&bench.watch.plan_of(&first.generation).unwrap(), &first));
    assert!(Arc::ptr_eq(&bench.watch.plan_of(&second.generation).unwrap(), &second));
    assert!(bench.watch.plan_of(&Generation::from("0000000000000000")).is_none());
    assert_eq!(bench.prepared.load(Ordering::SeqCst), 1, "each plan is prepared once");
}

#[test]
fn a_file_written_in_place_is_seen_too() {
    let bench = Bench::new(QUICK);
    std::fs::write(bench.dir.path().join("tiers.toml"), tiers("0.03")).unwrap();
    // The file is empty for a moment, which may have been seen or not.
    bench.until("0.03");
}

#[test]
fn a_config_map_swap_is_one_reload_to_one_whole_set() {
    let dir = tempfile::tempdir().unwrap();
    for (version, flat) in [("..v1", "0.01"), ("..v2", "0.02")] {
        std::fs::create_dir(dir.path().join(version)).unwrap();
        write_set(&dir.path().join(version), flat);
    }
    std::os::unix::fs::symlink("..v1", dir.path().join("..data")).unwrap();
    for name in crate::rules::file::NAMES {
        std::os::unix::fs::symlink(format!("..data/{name}"), dir.path().join(name)).unwrap();
    }
    let bench = Bench::over(dir, Path::to_owned, QUICK);
    assert_eq!(bench.watch.plan().generation, plan("0.01").generation);
    let root = bench.dir.path();
    std::os::unix::fs::symlink("..v2", root.join("..data_tmp")).unwrap();
    std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    assert_eq!(bench.next().generation, plan("0.02").generation);
    assert_eq!(bench.settled().reloads_ok, 3, "the first, the swap, and the one asked for here");
}

#[test]
fn a_bad_set_keeps_the_last_good_one_and_says_every_mistake_until_it_is_repaired() {
    let bench = Bench::new(QUICK);
    let first = bench.watch.plan();
    bench.replace("tiers.toml", "[tier.t]\nmodels = [\"b\"]\nmax_output_tokens = 0\n");
    let standing = bench.next();
    assert_eq!((&standing.generation, standing.reloads_ok, standing.reloads_failed), (&first.generation, 1, 1));
    assert_eq!(
        standing.last_error.unwrap(),
        [
            "routes.toml:5: route[0].accept[0]: \"tempo/charge\" has a fixed amount, and tier.t does not say `charge`",
            "tiers.toml:2: tier.t.models[0]: \"b\" is not in models.toml",
            "tiers.toml:3: tier.t.max_output_tokens: 0 is not between 1 and 10000000",
        ]
    );
    assert!(Arc::ptr_eq(&bench.watch.plan(), &first));
    bench.replace("tiers.toml", &tiers("0.02"));
    let standing = bench.next();
    assert_eq!((standing.last_error, standing.reloads_ok, standing.reloads_failed), (None, 2, 1));
    assert_eq!(standing.generation, plan("0.02").generation);
}

#[test]
fn going_back_to_the_set_in_force_clears_the_error_and_keeps_the_plan() {
    let bench = Bench::new(QUICK);
    let first = bench.watch.plan();
    bench.replace("tiers.toml", "[");
    assert!(bench.next().last_error.is_some());
    bench.replace("tiers.toml", &tiers("0.01"));
    let standing = bench.next();
    assert_eq!((standing.last_error, standing.reloads_ok), (None, 2));
    assert!(Arc::ptr_eq(&bench.watch.plan(), &first));
}

#[test]
fn unchanged_content_is_not_a_new_generation() {
    let bench = Bench::new(QUICK);
    let first = bench.watch.plan();
    let loaded_at = bench.watch.standing().loaded_at;
    bench.replace("tiers.toml", &tiers("0.01"));
    let standing = bench.settled();
    assert!(Arc::ptr_eq(&bench.watch.plan(), &first));
    assert_eq!((standing.reloads_ok, standing.loaded_at), (2, loaded_at), "only those asked for count");
    assert_eq!(bench.prepared.load(Ordering::SeqCst), 1, "asking reads secrets again, through prepare");
}

#[test]
fn what_cannot_be_prepared_does_not_become_visible() {
    let bench = Bench::new(QUICK);
    let first = bench.watch.plan();
    bench.veto.store(true, Ordering::SeqCst);
    bench.replace("tiers.toml", &tiers("0.02"));
    assert_eq!(bench.next().last_error.unwrap(), ["environment variable K is not set"]);
    assert!(Arc::ptr_eq(&bench.watch.plan(), &first));
    bench.veto.store(false, Ordering::SeqCst);
    assert_eq!(bench.settled().generation, plan("0.02").generation, "asking tries the same files again");
}

#[test]
fn what_could_not_be_prepared_is_tried_again_until_it_can_and_told_once() {
    let bench = Bench::new(Pace { backup: Duration::from_millis(20), ..QUICK });
    bench.veto.store(true, Ordering::SeqCst);
    bench.replace("tiers.toml", &tiers("0.02"));
    assert_eq!(bench.next().reloads_failed, 1);
    let tries = bench.prepared.load(Ordering::SeqCst);
    let end = Instant::now() + Duration::from_secs(20);
    while bench.prepared.load(Ordering::SeqCst) < tries + 3 {
        assert!(Instant::now() < end, "its key may be there by now, and nobody looks");
        std::thread::yield_now();
    }
    bench.veto.store(false, Ordering::SeqCst);
    let standing = bench.next();
    assert_eq!((standing.last_error, standing.reloads_failed), (None, 1), "the same refusal is not told again");
    assert_eq!(standing.generation, plan("0.02").generation);
}

#[test]
fn what_is_wrong_in_the_files_is_not_read_again_and_again() {
    let bench = Bench::new(Pace { backup: Duration::from_millis(20), ..QUICK });
    bench.replace("tiers.toml", "[");
    assert!(bench.next().last_error.is_some());
    let standing = bench.settled();
    assert_eq!(standing.reloads_failed, 2, "once when it changed, and once when somebody asked");
}

#[test]
fn without_a_watch_the_content_is_looked_at() {
    let bench = Bench::new(Pace { watched: false, alone: Duration::from_millis(20), ..QUICK });
    bench.replace("tiers.toml", &tiers("0.02"));
    assert_eq!(bench.next().generation, plan("0.02").generation);
}

#[test]
fn a_directory_that_is_itself_replaced_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    for (name, flat) in [("rules", "0.01"), ("next", "0.02")] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        write_set(&dir.path().join(name), flat);
    }
    let bench = Bench::over(dir, |dir| dir.join("rules"), Pace { backup: Duration::from_millis(50), ..QUICK });
    let root = bench.dir.path();
    std::fs::rename(root.join("rules"), root.join("before")).unwrap();
    std::fs::rename(root.join("next"), root.join("rules")).unwrap();
    // Between the two renames there was no directory, which may have been seen or not.
    bench.until("0.02");
    bench.replace("rules/tiers.toml", &tiers("0.03"));
    bench.until("0.03");
}

#[test]
fn a_directory_that_is_a_symlink_is_followed_when_it_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    for (name, flat) in [("r1", "0.01"), ("r2", "0.02")] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        write_set(&dir.path().join(name), flat);
    }
    std::os::unix::fs::symlink("r1", dir.path().join("current")).unwrap();
    let bench = Bench::over(dir, |dir| dir.join("current"), QUICK);
    let root = bench.dir.path();
    std::os::unix::fs::symlink("r2", root.join(".next")).unwrap();
    std::fs::rename(root.join(".next"), root.join("current")).unwrap();
    bench.until("0.02");
    bench.replace("r2/tiers.toml", &tiers("0.03"));
    bench.until("0.03");
}

#[test]
fn changes_that_never_end_are_read_all_the_same() {
    let bench = Bench::new(Pace { quiet: Duration::from_secs(600), patience: Duration::from_millis(60), ..QUICK });
    bench.replace("tiers.toml", &tiers("0.02"));
    bench.until("0.02");
}

#[test]
fn a_swap_in_the_middle_of_reading_never_mixes_two_sets() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    for (name, text) in [("v1", "# one"), ("v2", "# two")] {
        std::fs::create_dir(root.join(name)).unwrap();
        for file in crate::rules::file::NAMES {
            std::fs::write(root.join(name).join(file), text).unwrap();
        }
    }
    let whole = ["v1", "v2"].map(|name| Files::read(&root.join(name)).generation());
    std::os::unix::fs::symlink("v1", root.join("..data")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for version in ["v2", "v1"].iter().cycle() {
                std::os::unix::fs::symlink(version, root.join("tmp")).unwrap();
                std::fs::rename(root.join("tmp"), root.join("..data")).unwrap();
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        let seen: Vec<_> = (0..300).map(|_| Files::read(&root).generation()).collect();
        stop.store(true, Ordering::SeqCst);
        assert!(seen.iter().all(|generation| whole.contains(generation)));
    });
}

#[test]
fn a_first_set_with_mistakes_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    write_set(dir.path(), "free");
    let got = Rules::start(dir.path(), catalogue(), |_| Ok(()), |_| ()).unwrap_err();
    assert_eq!(got, ["tiers.toml:4: tier.t.charge.flat: \"free\" is not a plain decimal number such as \"0.02\""]);
}

#[test]
fn an_old_plan_is_kept_for_ten_minutes_and_at_most_thirty_two_are() {
    let at = UnixSeconds(1_000_000);
    let plans: Vec<_> = (10..50).map(|cent| plan(&format!("0.{cent}"))).collect();
    let mut shelf = Shelf { live: plans[0].clone(), old: Vec::new() };
    shelf = shelf.with(plans[1].clone(), at);
    let first = &plans[0].generation;
    assert!(shelf.find(first, at.plus(OLD_PLAN_SECONDS - 1)).is_some());
    assert!(shelf.find(first, at.plus(OLD_PLAN_SECONDS)).is_none(), "its offers have ended");
    assert!(shelf.without_lapsed(at.plus(OLD_PLAN_SECONDS - 1)).is_none(), "nothing to let go of");
    assert!(shelf.without_lapsed(at.plus(OLD_PLAN_SECONDS)).unwrap().old.is_empty());

    for plan in &plans[2..] {
        shelf = shelf.with(plan.clone(), at);
    }
    assert_eq!(shelf.old.len(), MOST_OLD_PLANS);
    assert!(shelf.find(&plans[38].generation, at).is_some() && shelf.find(first, at).is_none(), "the newest are kept");

    let back = shelf.with(plans[38].clone(), at);
    assert_eq!(
        back.old.iter().filter(|(old, _)| old.generation == back.live.generation).count(),
        0,
        "a plan is in one place"
    );
}
