//! Who leads which partition, and the connections to them (feature `fluvio`).
//!
//! The controller is asked when a partition is not known; after a failure everything is asked and connected anew.

use ::fluvio::Fluvio;
use ::fluvio::config::TlsPolicy;
use ::fluvio::metadata::partition::PartitionSpec;
use ::fluvio::metadata::spu::SpuSpec;
use anyhow::Context;
use fluvio_socket::{ClientConfig, MultiplexerSocket, VersionedSerialSocket};
use std::collections::HashMap;
use std::sync::Arc;

/// A connection to a leader.
pub(super) type Connection = Arc<VersionedSerialSocket>;

/// Requests of a connection are answered one after the other: who writes does not wait for those who read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Use {
    Read,
    Write,
}

/// Who leads a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Leader {
    pub(super) id: i32,
    /// No other server has a copy.
    pub(super) alone: bool,
}

/// What is known of the cluster.
#[derive(Default)]
pub(super) struct Leaders {
    /// By topic and partition.
    leaders: HashMap<(String, u32), Leader>,
    /// By leader: its name and its public address.
    addresses: HashMap<i32, (String, String)>,
    connections: HashMap<(i32, Use), Connection>,
}

impl Leaders {
    /// The leader of a partition, as it was asked last.
    pub(super) fn leader(&self, topic: &str, partition: u32) -> Option<Leader> {
        // A key of borrowed parts cannot be looked up: the copy is small beside the request.
        self.leaders.get(&(topic.to_owned(), partition)).copied()
    }

    /// Asks the controller for all of them.
    pub(super) async fn ask(&mut self, cluster: &Fluvio) -> Result<(), anyhow::Error> {
        let admin = cluster.admin().await;
        self.leaders.clear();
        for partition in admin.all::<PartitionSpec>().await? {
            if let Some((topic, number)) = partition.name.rsplit_once('-')
                && let Ok(number) = number.parse()
            {
                let leader = Leader { id: partition.spec.leader, alone: partition.spec.replicas.len() < 2 };
                self.leaders.insert((topic.to_owned(), number), leader);
            }
        }
        for leader in admin.all::<SpuSpec>().await? {
            self.addresses.insert(leader.spec.id, (leader.name, leader.spec.public_endpoint.addr()));
        }
        Ok(())
    }

    /// The connection to a leader, made when it is first needed.
    pub(super) async fn connection(&mut self, leader: i32, of: Use, tls: &TlsPolicy) -> Result<Connection, anyhow::Error> {
        if let Some(open) = self.connections.get(&(leader, of)).filter(|open| !open.is_stale()) {
            return Ok(open.clone());
        }
        let (name, address) = self.addresses.get(&leader).with_context(|| format!("server {leader} is not known"))?;
        let mut config = ClientConfig::new(address, tls.clone().try_into()?, false).with_prefix_sni_domain(name);
        config.set_client_id("quikflow");
        let (socket, config, versions) = config.connect().await.with_context(|| format!("server {leader} at {address}"))?.split();
        let connection = Arc::new(VersionedSerialSocket::new(MultiplexerSocket::shared(socket), config, versions));
        self.connections.insert((leader, of), connection.clone());
        Ok(connection)
    }
}
