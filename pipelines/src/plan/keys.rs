//! What is known of the key under which records lie: for sinks (R13), and for dividing the work (R19).

use crate::step::Step;
use quikflow_topics::catalogue::Catalogue;
use quikflow_topics::schema;
use std::collections::BTreeSet;

/// A key, by the columns of its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Keys {
    /// Sets of columns of which each determines the key.
    pub(super) determined_by: Vec<BTreeSet<String>>,
    /// Columns whose text the key is: two topics that lie by such columns lie alike.
    pub(super) text_of: BTreeSet<String>,
}

impl Keys {
    /// Of a topic of events: the key fields of its event types together.
    pub(super) fn of_events(catalogue: &Catalogue, topic: &str) -> Keys {
        let own = || std::iter::once(schema::KEY.to_owned());
        let fields: BTreeSet<String> = catalogue.events_of(topic).flat_map(|event| event.key.clone()).collect();
        let one = fields.first().filter(|field| catalogue.events_of(topic).all(|event| event.key == [(*field).clone()]));
        Keys { text_of: own().chain(one.cloned()).collect(), determined_by: vec![own().collect(), fields] }
    }

    /// The key of what `step` emits.
    pub(super) fn after(&self, step: &dyn Step) -> Keys {
        Keys { determined_by: step.key_columns(&self.determined_by), text_of: step.key_texts(&self.text_of) }
    }

    /// The same where `_key` is another key now.
    pub(super) fn behind_a_new_key(&self) -> Keys {
        let others = self.determined_by.iter().filter(|set| !set.contains(schema::KEY)).cloned();
        Keys {
            determined_by: others.collect(),
            text_of: self.text_of.iter().filter(|name| *name != schema::KEY).cloned().collect(),
        }
    }

    /// What determines the key of records that have the one key or the other.
    pub(super) fn meet(&self, other: &Keys) -> Keys {
        let narrow = |a: &Keys, b: &Keys| {
            let wide = |set: &&BTreeSet<String>| b.determined_by.iter().any(|s| s.is_subset(set));
            a.determined_by.iter().filter(wide).cloned().collect::<Vec<_>>()
        };
        let mut both = narrow(self, other);
        both.extend(narrow(other, self));
        both.sort();
        both.dedup();
        Keys { determined_by: both, text_of: self.text_of.intersection(&other.text_of).cloned().collect() }
    }

    /// Whether records of which `columns` are equal lie in one partition; `alone`: they are of one topic.
    pub(super) fn gather(&self, columns: &BTreeSet<String>, alone: bool) -> bool {
        let determined = || self.determined_by.iter().any(|set| set.is_subset(columns));
        !self.text_of.is_disjoint(columns) || (alone && determined())
    }
}
