//! `inferq batch run`: the library's run, with a progress bar on a terminal and plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use connect::NatsArgs;
use indicatif::{ProgressBar, ProgressStyle};
use producer::batch::{self, Options, Progress, Stage, Summary};
use producer::pool;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use traces::Traces;

use super::{EXIT_STOPPED, print_json, print_line, tenant_token};
use crate::config::{BatchArgs, Output};

/// Between two plain lines of progress.
const LINE_EVERY: Duration = Duration::from_secs(5);
const BAR: &str = "{bar:40.cyan/blue} {pos}/{len} rows  {percent}%  {msg}  eta {eta}";

pub async fn run(nats: &NatsArgs, traces: Traces, output: Output, args: BatchArgs) -> anyhow::Result<u8> {
    tenant_token(&args.tenant)?;
    let pool = pool::pool(nats.clone(), "inferq-batch", args.connections as usize);
    let options = Options {
        input: args.input,
        output: args.out,
        errors: args.errors,
        tenant: args.tenant.tenant,
        lane: args.lane,
        window: args.window as usize,
        restart: args.restart,
        traces,
    };
    let (sender, receiver) = watch::channel(Progress::default());
    let stop = CancellationToken::new();
    let on_interrupt = stop.clone();
    tokio::spawn(async move {
        // Without a signal source the process is simply killed, which a run survives too.
        if tokio::signal::ctrl_c().await.is_ok() {
            on_interrupt.cancel();
        }
    });
    let started = Instant::now();
    let shown = tokio::spawn(show(receiver));
    let summary = batch::run(&pool, &options, &sender, &stop).await;
    drop(sender);
    shown.await?;
    let summary = summary?;
    report(output, &options, summary, started.elapsed())?;
    Ok(match summary {
        Summary { stopped: true, .. } => EXIT_STOPPED,
        Summary { failed: 0, .. } => 0,
        Summary { .. } => 1,
    })
}

fn report(output: Output, options: &Options, summary: Summary, elapsed: Duration) -> anyhow::Result<()> {
    let Summary { rows, failed, resumed, stopped } = summary;
    let seconds = elapsed.as_secs_f64();
    if output == Output::Json {
        return print_json(&json!({
            "rows": rows, "failed": failed, "resumed": resumed, "stopped": stopped, "seconds": seconds,
        }));
    }
    if stopped {
        eprintln!("stopped; run the same command again to go on");
        return Ok(());
    }
    let rate = (rows - resumed) as f64 / seconds.max(1e-9);
    print_line(&format!(
        "{rows} rows in {seconds:.1} s ({rate:.0} rows/s), {failed} failed, {resumed} from an earlier run"
    ))?;
    print_line(&format!("answers: {}", options.output.display()))
}

/// Follows a run until it ends.
async fn show(mut progress: watch::Receiver<Progress>) {
    let bar = std::io::stderr().is_terminal().then(bar);
    let started = Instant::now();
    let mut last_line = Instant::now();
    while progress.changed().await.is_ok() {
        let now = *progress.borrow_and_update();
        match &bar {
            Some(bar) => draw(bar, now),
            None if last_line.elapsed() >= LINE_EVERY => {
                last_line = Instant::now();
                eprintln!("{}", line(now, started.elapsed()));
            }
            None => {}
        }
    }
    let now = *progress.borrow();
    match bar {
        Some(bar) => {
            draw(&bar, now);
            bar.abandon();
            // The bar leaves the cursor in its line.
            eprintln!();
        }
        None => eprintln!("{}", line(now, started.elapsed())),
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template(BAR).expect("the template is checked by its test");
    ProgressBar::new(0).with_style(style)
}

fn draw(bar: &ProgressBar, now: Progress) {
    if bar.length() != Some(now.rows) {
        // Rows of an earlier run must not count for the rate.
        bar.set_length(now.rows);
        bar.set_position(now.resumed);
        bar.reset_eta();
    }
    bar.set_position(now.done);
    bar.set_message(format!("{:.0} rows/s, {} failed", bar.per_sec(), now.failed));
}

fn line(now: Progress, elapsed: Duration) -> String {
    let Progress { stage, rows, done, failed, resumed, in_flight } = now;
    match stage {
        Stage::Checking => "checking the input".to_owned(),
        Stage::CatchingUp => format!("reading results, {done}/{rows} rows done before"),
        Stage::Running => {
            let rate = (done - resumed) as f64 / elapsed.as_secs_f64().max(1e-9);
            let percent = done as f64 * 100.0 / rows.max(1) as f64;
            let eta = (rows - done) as f64 / rate.max(1e-9);
            let eta = if rate > 0.0 { format!("{eta:.0} s") } else { "unknown".to_owned() };
            format!(
                "{done}/{rows} rows  {percent:.1}%  {rate:.0} rows/s  {in_flight} in flight  {failed} failed  eta {eta}"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_a_legal_template() {
        draw(&bar(), Progress { rows: 10, done: 5, ..Progress::default() });
    }

    #[test]
    fn a_plain_line_tells_rate_and_rest() {
        let now = Progress { stage: Stage::Running, rows: 200, done: 150, failed: 1, resumed: 50, in_flight: 10 };
        let text = line(now, Duration::from_secs(10));
        assert_eq!(text, "150/200 rows  75.0%  10 rows/s  10 in flight  1 failed  eta 5 s");
    }
}
