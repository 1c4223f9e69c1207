//! The two shells: one reads slices and runs what needs no state; one, on each level, applies epochs
//! to keyed steps strictly in order (R5). Authors of operators never see a capability.

use super::core::Task;
use super::parcel::Parcel;
use super::worker::Shared;
use std::collections::BTreeMap;
use std::rc::Rc;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::core::Concatenate;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::probe::Handle as ProbeHandle;
use timely::dataflow::operators::{Capability, Input, Probe};
use timely::dataflow::{InputHandle, Scope, Stream};
use timely::worker::Worker;

/// Slices of an epoch, on the worker that decodes them.
pub(crate) type Slices = InputHandle<u64, CapacityContainerBuilder<Vec<Rc<Task>>>>;

type Parcels<'scope> = Stream<'scope, u64, Vec<Parcel>>;
type Done<'scope> = Stream<'scope, u64, Vec<()>>;
type ParcelOutput = OutputBuilder<u64, CapacityContainerBuilder<Vec<Parcel>>>;

/// Builds the dataflow; the probe says which epochs are complete.
pub(crate) fn build(worker: &mut Worker, shared: &Rc<Shared>, levels: usize) -> (Slices, ProbeHandle<u64>) {
    let index = worker.index();
    worker.dataflow(|scope| {
        let (input, slices) = scope.new_input::<Vec<Rc<Task>>>();
        let (mut edges, done) = source_shell(scope, slices, shared.clone(), levels, index);
        let mut ends = vec![done];
        for level in 1..=levels {
            let here: Vec<Parcels<'_>> = edges.iter_mut().map(|from| from.remove(0)).collect();
            let (out, done) = keyed_shell(scope, here, shared.clone(), level, levels);
            edges.push(out);
            ends.push(done);
        }
        let (probe, _) = scope.concatenate(ends).probe();
        (input, probe)
    })
}

/// Outputs to each of the levels from `from` to `to`, the output that carries nothing but progress last.
fn outputs<'scope>(
    builder: &mut OperatorBuilder<'scope, u64>,
    count: usize,
) -> (Vec<ParcelOutput>, Vec<Parcels<'scope>>, Done<'scope>) {
    let mut handles = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..count {
        let (handle, stream) = builder.new_output::<Vec<Parcel>>();
        handles.push(OutputBuilder::from(handle));
        streams.push(stream);
    }
    let (_, done) = builder.new_output::<Vec<()>>();
    (handles, streams, done)
}

/// Parcels by level.
fn by_level(parcels: Vec<Parcel>) -> BTreeMap<usize, Vec<Parcel>> {
    let mut levels: BTreeMap<usize, Vec<Parcel>> = BTreeMap::new();
    for parcel in parcels {
        levels.entry(parcel.level as usize).or_default().push(parcel);
    }
    levels
}

fn source_shell<'scope>(
    scope: Scope<'scope, u64>,
    slices: Stream<'scope, u64, Vec<Rc<Task>>>,
    shared: Rc<Shared>,
    levels: usize,
    worker: usize,
) -> (Vec<Vec<Parcels<'scope>>>, Done<'scope>) {
    let mut builder = OperatorBuilder::new("read".to_owned(), scope);
    let mut input = builder.new_input(slices, Pipeline);
    let (mut handles, streams, done) = outputs(&mut builder, levels);
    builder.build(move |_capabilities| {
        move |_frontiers| {
            input.for_each(|capability, tasks| {
                let Some(epoch) = capability.least().copied() else { return };
                if let Some(hook) = &shared.hooks.before_read {
                    hook(worker, quikflow_topics::ids::Epoch(epoch));
                }
                let mut parcels = Vec::new();
                shared.guard(|core| {
                    tasks.drain(..).try_for_each(|task| core.take(quikflow_topics::ids::Epoch(epoch), &task, &mut parcels))
                });
                for (level, mut parcels) in by_level(parcels) {
                    handles[level - 1].activate().session(&capability).give_container(&mut parcels);
                }
            });
        }
    });
    (vec![streams], done)
}

fn keyed_shell<'scope>(
    scope: Scope<'scope, u64>,
    from: Vec<Parcels<'scope>>,
    shared: Rc<Shared>,
    level: usize,
    levels: usize,
) -> (Vec<Parcels<'scope>>, Done<'scope>) {
    let mut builder = OperatorBuilder::new(format!("apply {level}"), scope);
    let mut inputs: Vec<_> = from
        .into_iter()
        .map(|stream| builder.new_input(stream, Exchange::new(|parcel: &Parcel| u64::from(parcel.worker))))
        .collect();
    let (mut handles, streams, done) = outputs(&mut builder, levels - level);
    builder.build(move |capabilities| {
        // One capability an output, at the first epoch not applied yet.
        let mut held: Vec<Capability<u64>> = capabilities;
        let mut stash: BTreeMap<u64, Vec<Parcel>> = BTreeMap::new();
        let mut applied: u64 = 0;
        move |frontiers| {
            for input in &mut inputs {
                input.for_each(|capability, parcels| {
                    if let Some(epoch) = capability.least() {
                        stash.entry(*epoch).or_default().append(parcels);
                    }
                });
            }
            loop {
                let next = shared.epochs.borrow().range(applied + 1..).next().map(|(epoch, work)| (*epoch, work.clone()));
                let Some((epoch, work)) = next else { break };
                // A later epoch's parcels wait here until nothing of this one can come (R5).
                if frontiers.iter().any(|frontier| frontier.less_equal(&epoch)) {
                    break;
                }
                let mut taken = stash.remove(&epoch).unwrap_or_default();
                if shared.hooks.reverse_exchange {
                    taken.reverse();
                }
                let mut parcels = Vec::new();
                shared.guard(|core| core.apply(level, &work, taken, &mut parcels));
                for capability in &mut held {
                    capability.downgrade(&epoch);
                }
                for (above, mut parcels) in by_level(parcels) {
                    let output = above - level - 1;
                    handles[output].activate().session(&held[output]).give_container(&mut parcels);
                }
                applied = epoch;
                for capability in &mut held {
                    capability.downgrade(&(epoch + 1));
                }
            }
            if frontiers.iter().all(|frontier| frontier.is_empty()) {
                held.clear();
            }
        }
    });
    (streams, done)
}
