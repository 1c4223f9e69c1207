//! `quikflow health`: asks a running process how it is, as probes of containers do.

use super::run::listen_address;
use crate::client::{Client, block_on};
use crate::exit::{Ended, Failure, Outcome};
use crate::out;
use crate::settings::Settings;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Asks whether a process can do its work; exit 0 when it can
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: quikflow health --url http://127.0.0.1:8080\n\nWithout --url it asks where this machine's process listens by the same settings: health_addr, else ingest_addr."
)]
pub(crate) struct Args {
    /// Only whether it answers at all
    #[arg(long)]
    live: bool,
    /// The process's address: of ingest, of the query API, or of its health
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// For at most so long
    #[arg(long, default_value = "3s", value_parser = super::duration, value_name = "DURATION")]
    timeout: Duration,
}

/// Does it.
pub(crate) fn run(args: &Args, settings: &Settings) -> Ended {
    let base = match &args.url {
        Some(url) => url.clone(),
        None => own(settings)?,
    };
    let path = if args.live { "/health/live" } else { "/health/ready" };
    block_on(async {
        // Health is answered without a token, so none is sent.
        let client = Client::exactly(&base, None)?;
        let request = client.request(reqwest::Method::GET, path).timeout(args.timeout);
        // Whatever is wrong, a probe's answer is 1.
        client.send(request).await.map_err(|failure| Failure::failed(failure.message))?;
        out::line(if args.live { "live" } else { "ready" })?;
        Ok(Outcome::Done)
    })
}

/// Where the process of these settings answers.
fn own(settings: &Settings) -> Result<String, Failure> {
    let name = ["health_addr", "ingest_addr"].into_iter().find_map(|name| settings.get(name)).unwrap_or("127.0.0.1:8080");
    Ok(format!("http://{}", reachable(listen_address(name)?)))
}

/// Whoever listens everywhere is asked on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_listens_everywhere_is_asked_on_loopback() {
        let asked = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(asked("0.0.0.0:8070"), "127.0.0.1:8070");
        assert_eq!(asked("[::]:8070"), "[::1]:8070");
        assert_eq!(asked("10.0.0.1:1"), "10.0.0.1:1");
    }
}
