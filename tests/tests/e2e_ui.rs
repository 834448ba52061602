//! The web UI in a real browser, on a real cluster: what happens is seen without a reload.

use std::path::PathBuf;

use rustix::process::Signal;
use tests::cluster::{SOON, pid_of, program, slot_of};
use tests::feed::{Counts, Feed};
use tests::wait::check;
use tests::{Brokers, Browser, Cluster, Job, Topics, process};

/// Where screenshots are left for people: `screenshots` in the target folder.
fn screenshots() -> PathBuf {
    let folder = program("nm").ancestors().nth(2).unwrap().join("screenshots");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Waits until `expression` is true on the page.
#[track_caller]
fn wait_page(cluster: &Cluster, browser: &Browser, expression: &str) {
    cluster.wait(expression, SOON, |_| {
        let answer = browser.run(&format!("return Boolean({expression})"))?;
        check(answer == true, || {
            browser
                .run("return document.querySelector('main').innerText")
                .map_or_else(|e| e.to_string(), |t| t.to_string())
        })
    });
}

#[test]
fn states_change_on_the_page_while_a_container_is_killed() {
    let brokers = Brokers::shared();
    let topics = Topics::on(brokers);
    let mut cluster = Cluster::start(2);
    let job = Job { containers: 2, ..Job::counter("page", brokers) };
    topics.create(&job.inputs[0], 4);
    topics.create(&job.output, 1);
    cluster.submit(&job);
    let before = cluster.wait_running(&job);
    let feed = Feed::start(brokers, &job.inputs[0], 200, 200);

    let browser = Browser::start(1280, 900).unwrap();
    browser.open(&format!("http://{}/apps/{}", cluster.web(), before.app)).unwrap();
    wait_page(&cluster, &browser, "document.querySelector('#slot-0').dataset.state == 'running'");
    wait_page(&cluster, &browser, "document.querySelector('#slot-1').dataset.state == 'running'");
    let shown = browser.run("return document.querySelector('#slot-0').dataset.container").unwrap();
    let container = slot_of(&before, 0).container.unwrap().to_string();
    assert_eq!(shown.as_str(), Some(container.as_str()));

    // The page tells by itself, without a reload: each state that the row goes through is noted.
    let note = "window.seen = []; window.loaded = performance.timeOrigin; \
        new MutationObserver(() => { const row = document.querySelector('#slot-0'); \
        if (row) window.seen.push(row.dataset.state); }) \
        .observe(document.querySelector('main'), {subtree: true, childList: true, attributes: true});";
    browser.run(note).unwrap();
    process::send(pid_of(&before, 0), Signal::KILL);
    wait_page(
        &cluster,
        &browser,
        &format!("document.querySelector('#slot-0').dataset.container != '{container}'"),
    );
    wait_page(&cluster, &browser, "document.querySelector('#slot-0').dataset.state == 'running'");
    wait_page(&cluster, &browser, "document.querySelector('#slot-0').dataset.restarts == '1'");
    wait_page(&cluster, &browser, "document.querySelector('#slot-0').innerText.includes('signal 9')");
    wait_page(&cluster, &browser, "window.seen.some((state) => state != 'running')");
    wait_page(&cluster, &browser, "window.loaded == performance.timeOrigin");
    let history = format!("document.getElementById('{container}').dataset.state == 'exited'");
    wait_page(&cluster, &browser, &history);
    browser.run(&format!("document.querySelector(\"[data-log='{container}']\").click()")).unwrap();
    browser.run("document.querySelector(\"[data-stream='stderr']\").click()").unwrap();
    wait_page(&cluster, &browser, "document.querySelector('#logs-text').innerText.length > 100");

    // The first point of the curves is taken ten seconds after the start at the latest.
    wait_page(
        &cluster,
        &browser,
        "document.querySelector(\"[data-curves='0'] [data-curve='memory'][data-points]\")",
    );
    for (name, width, height) in [("app-wide", 1280, 1200), ("app-narrow", 420, 1600)] {
        browser.resize(width, height).unwrap();
        wait_page(&cluster, &browser, "document.documentElement.scrollWidth <= window.innerWidth");
        browser.screenshot(&screenshots().join(format!("{name}.png"))).unwrap();
    }

    browser.open(&format!("http://{}/", cluster.web())).unwrap();
    wait_page(
        &cluster,
        &browser,
        "document.querySelectorAll(\"[data-node][data-state='active']\").length == 2",
    );
    let row = format!("document.querySelector(\"[data-app='{}']\")", before.app);
    wait_page(&cluster, &browser, &format!("{row} && {row}.dataset.state == 'running'"));
    browser.screenshot(&screenshots().join("cluster-narrow.png")).unwrap();
    browser.resize(1280, 900).unwrap();
    browser.screenshot(&screenshots().join("cluster-wide.png")).unwrap();
    cluster.kill_nm(1);
    wait_page(&cluster, &browser, "document.getElementById('node-127.0.0.2').dataset.state != 'active'");
    cluster.start_nm(1);
    wait_page(&cluster, &browser, "document.getElementById('node-127.0.0.2').dataset.state == 'active'");
    feed.finish(&mut Counts::new());
}
