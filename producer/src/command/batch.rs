//! `inferq batch run`: the library's run, with a progress bar on a terminal and plain lines elsewhere.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connect::NatsArgs;
use indicatif::{ProgressBar, ProgressStyle};
use producer::batch::{self, Folder, Format, Found, Media, Options, Progress, Source, Stage, Summary};
use producer::pool;
use schemas::job::Endpoint;
use serde_json::{Map, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use traces::Traces;

use super::submit::set_fields;
use super::{BadInput, EXIT_STOPPED, Usage, print_json, print_line, tenant_token};
use crate::config::{BatchArgs, Output};

/// Between two plain lines of progress.
const LINE_EVERY: Duration = Duration::from_secs(5);
const BAR: &str = "{bar:40.cyan/blue} {pos}/{len} rows  {percent}%  {msg}  eta {eta}";

pub async fn run(nats: &NatsArgs, traces: Traces, output: Output, args: BatchArgs) -> anyhow::Result<u8> {
    tenant_token(&args.tenant)?;
    let pool = pool::pool(nats.clone(), "inferq-batch", args.connections as usize);
    let (input, output_file, transcripts) = paths(&args)?;
    let options = Options {
        input,
        output: output_file,
        transcripts,
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

/// The input, the file of lines, and the folder of transcripts with their format.
type Paths = (Source, PathBuf, Option<(PathBuf, Format)>);

/// What is read and where it goes. A folder of files goes to a folder, unless that has the name of a file of lines.
fn paths(args: &BatchArgs) -> anyhow::Result<Paths> {
    if !args.input.is_dir() {
        if args.model.is_some() {
            return Err(Usage(format!("{} is no folder; --model is for folders", args.input.display())).into());
        }
        return Ok((Source::Lines(args.input.clone()), args.out.clone(), None));
    }
    let Some(model) = &args.model else {
        return Err(Usage(format!("{} is a folder; name a --model for its files", args.input.display())).into());
    };
    let wrong = |reason: String| BadInput(format!("{}: {reason}", args.input.display()));
    let found = Found::read(&args.input).map_err(|error| wrong(error.to_string()))?;
    let mut body = Map::from_iter([("model".to_owned(), json!(model))]);
    let (media, files, endpoint) = match (found.audio.is_empty(), found.images.is_empty()) {
        (false, false) => Err(wrong("holds audio and images; give each a folder of its own".to_owned()))?,
        (true, false) => (Media::Images, found.images, Endpoint::Embeddings),
        (_, true) => {
            // Of which the other formats can be made, and which tells the seconds.
            body.insert("response_format".to_owned(), json!("verbose_json"));
            let endpoint = if args.translate { Endpoint::Translations } else { Endpoint::Transcriptions };
            (Media::Audio, found.audio, endpoint)
        }
    };
    set_fields(&mut body, &args.set)?;
    let format = if media == Media::Images { Format::Json } else { args.format };
    let folder = Folder { root: args.input.clone(), files, media, url: endpoint.url(), body };
    let source = Source::Folder(Arc::new(folder));
    if args.out.extension().is_some_and(|ending| ending == "jsonl") {
        return Ok((source, args.out.clone(), None));
    }
    std::fs::create_dir_all(&args.out).map_err(|error| BadInput(format!("{}: {error}", args.out.display())))?;
    Ok((source, args.out.join("batch.jsonl"), Some((args.out.clone(), format))))
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
    let answers = options.transcripts.as_ref().map_or(&options.output, |(folder, _)| folder);
    print_line(&format!("answers: {}", answers.display()))
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
    let audio = audio(now);
    bar.set_message(format!("{:.0} rows/s, {} failed{audio}", bar.per_sec(), now.failed));
}

/// How much audio there was, where there was any.
fn audio(now: Progress) -> String {
    if now.audio_seconds > 0.0 { format!(", {:.0} s of audio", now.audio_seconds) } else { String::new() }
}

fn line(now: Progress, elapsed: Duration) -> String {
    let Progress { stage, rows, done, failed, resumed, in_flight, .. } = now;
    let audio = audio(now);
    match stage {
        Stage::Checking => "checking the input".to_owned(),
        Stage::CatchingUp => format!("reading results, {done}/{rows} rows done before"),
        Stage::Running => {
            let rate = (done - resumed) as f64 / elapsed.as_secs_f64().max(1e-9);
            let percent = done as f64 * 100.0 / rows.max(1) as f64;
            let eta = (rows - done) as f64 / rate.max(1e-9);
            let eta = if rate > 0.0 { format!("{eta:.0} s") } else { "unknown".to_owned() };
            format!(
                "{done}/{rows} rows  {percent:.1}%  {rate:.0} rows/s  {in_flight} in flight  {failed} failed{audio}  eta {eta}"
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
        let now = Progress {
            stage: Stage::Running,
            rows: 200,
            done: 150,
            failed: 1,
            resumed: 50,
            in_flight: 10,
            audio_seconds: 0.0,
        };
        let text = line(now, Duration::from_secs(10));
        assert_eq!(text, "150/200 rows  75.0%  10 rows/s  10 in flight  1 failed  eta 5 s");
    }
}
