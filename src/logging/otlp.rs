//! Traces: the spans of requests, sent in batches to a collector by OTLP over HTTP. What cannot be
//! sent is dropped; no request waits for a collector.

use std::time::Duration;

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    runtime::Tokio,
    trace::{SdkTracerProvider, span_processor_with_async_runtime::BatchSpanProcessor},
};
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

use super::OtlpEndpoint;
use crate::ids::InstanceId;

/// Longest wait for the collector with a batch, and with the last ones at the end.
const PATIENCE: Duration = Duration::from_secs(3);

/// The spans of this process on their way to the collector.
#[derive(Clone, Debug)]
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// Sends what is left.
    pub(super) fn finish(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(PATIENCE) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Sends spans of the service to the collector, if there is one.
///
/// # Errors
/// If the collector's address cannot be used.
pub(super) fn start<S>(
    to: Option<(&OtlpEndpoint, InstanceId)>,
) -> Result<Option<(impl Layer<S>, Traces)>, String>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let Some((OtlpEndpoint(endpoint), node)) = to else { return Ok(None) };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .with_timeout(PATIENCE)
        .build()
        .map_err(|error| format!("--otlp-endpoint {endpoint}: {error}"))?;
    let resource = Resource::builder()
        .with_service_name("EMNetChain")
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", node.0.to_string()),
        ])
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter, Tokio).build())
        .with_resource(resource)
        .build();
    // The exporter's own libraries must not be traced, or each batch would make another one.
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), LevelFilter::TRACE);
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("emnetchain"));
    Ok(Some((layer.with_filter(ours), Traces(provider))))
}
