//! `inferq top`: the dashboard in a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use connect::NatsArgs;
use producer::Client;
use producer::gateway::{Looks, Queue, Records, Snapshot, TenantBatch};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table};
use ratatui::{DefaultTerminal, Frame};
use schemas::pace::Pace;
use tokio::sync::mpsc;

use super::{Usage, connect};

const EVERY: Duration = Duration::from_secs(1);
/// Batches that have a line.
const BATCHES: u16 = 6;

pub async fn run(nats: &NatsArgs) -> anyhow::Result<u8> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Usage("top needs a terminal; `inferq status` prints the same once".to_owned()).into());
    }
    let client = Client::new(connect(nats).await?);
    let records = Records::new(client.connection.jetstream.clone());
    let mut looks = Looks::default();
    // The first look fails where there is nothing to see, before the terminal is taken.
    let mut snapshot = looks.look(&client, &records).await?;
    let mut keys = keys();
    let mut terminal = ratatui::init();
    let (mut first, mut trouble) = (0_usize, None);
    let mut ticks = tokio::time::interval(EVERY);
    let ended = loop {
        if let Err(error) = show(&mut terminal, &snapshot, first, trouble.as_deref()) {
            break Err(error.into());
        }
        tokio::select! {
            key = keys.recv() => match key {
                Some(Key::Quit) | None => break Ok(0),
                Some(Key::Down) => first = (first + 1).min(snapshot.queues.len().saturating_sub(1)),
                Some(Key::Up) => first = first.saturating_sub(1),
                Some(Key::Resize) => {}
            },
            _ = ticks.tick() => match looks.look(&client, &records).await {
                Ok(seen) => (snapshot, trouble) = (seen, None),
                Err(error) => trouble = Some(format!("{error:#}")),
            },
        }
    };
    ratatui::restore();
    ended
}

enum Key {
    Quit,
    Up,
    Down,
    Resize,
}

/// Keys are read on a thread of their own, since reading one blocks.
fn keys() -> mpsc::Receiver<Key> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            let key = match event {
                Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
                    KeyCode::Up | KeyCode::Char('k') => Some(Key::Up),
                    KeyCode::Down | KeyCode::Char('j') => Some(Key::Down),
                    _ => None,
                },
                Event::Resize(..) => Some(Key::Resize),
                _ => None,
            };
            if key.is_some_and(|key| sender.blocking_send(key).is_err()) {
                return;
            }
        }
    });
    receiver
}

fn show(
    terminal: &mut DefaultTerminal,
    snapshot: &Snapshot,
    first: usize,
    trouble: Option<&str>,
) -> std::io::Result<()> {
    terminal.draw(|frame| draw(frame, snapshot, first, trouble)).map(drop)
}

fn draw(frame: &mut Frame, snapshot: &Snapshot, first: usize, trouble: Option<&str>) {
    let workers = u16::try_from(snapshot.workers.len()).unwrap_or(u16::MAX).saturating_add(2).min(12);
    let batches = u16::try_from(snapshot.batches.len()).unwrap_or(u16::MAX).min(BATCHES) + 2;
    let parts = [
        Constraint::Length(2),
        Constraint::Min(4),
        Constraint::Length(workers),
        Constraint::Length(batches),
        Constraint::Length(1),
    ];
    let [head, queues, workers, batches, foot] = Layout::vertical(parts).areas(frame.area());
    let totals = format!(
        "{} jobs  {} results  {} dead letters  {}",
        snapshot.jobs.messages, snapshot.results.messages, snapshot.dead.messages, snapshot.time
    );
    frame.render_widget(Line::from(vec!["inferq  ".bold(), totals.into()]), head);
    let shown = snapshot.queues.iter().skip(first).map(queue);
    let names = ["MODEL", "LANE", "WAITING", "IN FLIGHT", "OLDEST", "RATE", "EMPTY IN"];
    frame.render_widget(table(names, [24, 9, 10, 10, 9, 9, 9], shown), queues);
    let names = ["WORKER", "MODEL", "DEVICE", "JOBS HELD", "BATCH", "TOKENS/S"];
    frame.render_widget(table(names, [28, 24, 8, 10, 8, 10], snapshot.workers.iter().map(worker)), workers);
    let names = ["BATCH", "TENANT", "STATUS", "DONE", "FAILED"];
    frame.render_widget(table(names, [39, 12, 12, 20, 8], snapshot.batches.iter().map(batch)), batches);
    let foot_text = trouble.map_or(Line::from("q quits, up and down move").dim(), |trouble| Line::from(trouble).red());
    frame.render_widget(foot_text, foot);
}

fn table<'a, const N: usize>(
    names: [&'a str; N],
    widths: [u16; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Table<'a> {
    let rows = rows.map(|cells| Row::new(cells.map(Cell::from)));
    Table::new(rows, widths.map(Constraint::Max)).header(Row::new(names).style(Style::new().dim())).column_spacing(2)
}

fn queue(Queue { lane, rate }: &Queue) -> [String; 7] {
    [
        lane.model.clone(),
        lane.lane.clone(),
        lane.queued.to_string(),
        lane.in_flight.to_string(),
        age(lane.age_seconds),
        rate.map_or("-".to_owned(), |rate| format!("{rate:.1}/s")),
        age(lane.backlog_seconds),
    ]
}

fn worker(pace: &Pace) -> [String; 6] {
    let rate = pace
        .unit_seconds
        .filter(|seconds| *seconds > 0.0)
        .map_or("-".to_owned(), |seconds| format!("{:.0}", 1.0 / seconds));
    let device = pace.device.clone().unwrap_or_else(|| "-".to_owned());
    let batch = pace.batch_size.map_or("-".to_owned(), |size| format!("{size:.1}"));
    [pace.worker.clone(), pace.model.clone(), device, pace.in_flight.to_string(), batch, rate]
}

fn batch(TenantBatch { tenant, batch }: &TenantBatch) -> [String; 5] {
    let counts = batch.request_counts;
    let status = serde_json::to_value(batch.status).ok().and_then(|status| status.as_str().map(str::to_owned));
    let done = format!("{} of {}", counts.completed + counts.failed, counts.total);
    [batch.id.clone(), tenant.clone(), status.unwrap_or_default(), done, counts.failed.to_string()]
}

/// Seconds in their largest unit.
fn age(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return "-".to_owned() };
    let (size, unit) = match seconds {
        seconds if seconds >= 86400.0 => (86400.0, "d"),
        seconds if seconds >= 3600.0 => (3600.0, "h"),
        seconds if seconds >= 60.0 => (60.0, "min"),
        _ => (1.0, "s"),
    };
    format!("{:.0} {unit}", seconds / size)
}

#[cfg(test)]
mod tests {
    use producer::status::{LaneStatus, Status, StreamStatus};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    #[test]
    fn the_screen_shows_queues_and_workers_in_their_columns() {
        let lane = LaneStatus {
            model: "m".into(),
            lane: "flex".into(),
            queued: 12,
            in_flight: 3,
            redelivered: 0,
            lag: 15,
            backlog_seconds: Some(90.0),
            age_seconds: Some(4.0),
            acknowledged: 0,
        };
        let pace = Pace {
            worker: "w-1".into(),
            model: "m".into(),
            unit_seconds: Some(0.01),
            job_cost: None,
            device: Some("cpu".into()),
            in_flight: 3,
            batch_size: Some(2.25),
        };
        let stream = StreamStatus { messages: 7, bytes: 0 };
        let snapshot = Snapshot {
            time: "2026-01-01T00:00:00Z".into(),
            queues: vec![Queue { lane, rate: Some(2.5) }],
            workers: vec![pace],
            batches: Vec::new(),
            jobs: stream.clone(),
            results: stream.clone(),
            dead: stream,
            status: Status::default(),
        };
        let mut terminal = Terminal::new(TestBackend::new(110, 20)).unwrap();
        terminal.draw(|frame| draw(frame, &snapshot, 0, None)).unwrap();
        let screen = terminal.backend().to_string();
        let line = |name: &str| {
            let line = screen.lines().find(|line| line.split_whitespace().any(|word| word.trim_matches('"') == name));
            line.unwrap_or_else(|| panic!("no {name} in\n{screen}")).split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert!(line("flex").contains("m flex 12 3 4 s 2.5/s 2 min"), "{screen}");
        assert!(line("w-1").contains("w-1 m cpu 3 2.2 100"), "{screen}");
    }

    #[test]
    fn ages_have_their_largest_unit() {
        let told = [Some(5.0), Some(61.0), Some(7200.0), Some(200_000.0), None].map(age);
        assert_eq!(told, ["5 s", "1 min", "2 h", "2 d", "-"]);
    }
}
