//! Where spans are sent, as the programs are told. The other variables of OpenTelemetry are read by its own library.

use clap::Args;

#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Traces")]
pub struct TraceArgs {
    /// Collector that spans are sent to by OTLP over HTTP, such as http://localhost:4318; none are made without it
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", global = true, value_name = "URL", hide_env_values = true)]
    pub otlp_endpoint: Option<String>,
}
