//! A topic as a table: its system columns and fields, read slice by slice with only the columns asked for.

use quikflow_sinks::store::{Scan, ScanRequest, StoreError, TableInfo};
use quikflow_topics::broker::{Broker, BrokerError, Positions, Projection};
use quikflow_topics::catalogue::TopicSpec;
use quikflow_topics::ids::{Offset, PartitionId};
use quikflow_topics::schema;

/// Rows decoded at once.
const SLICE: usize = 8_192;

/// What a topic looks like as a table.
pub(super) fn info(spec: &TopicSpec) -> TableInfo {
    TableInfo {
        name: spec.name.clone(),
        doc: spec.doc.clone(),
        schema: spec.schema(),
        key: vec![schema::PARTITION.to_owned(), schema::OFFSET.to_owned()],
        time_column: Some(schema::EVENT_TIME.to_owned()),
        final_column: None,
        rollup: std::collections::BTreeMap::new(),
        topic: spec.name.clone(),
        sink: String::new(),
    }
}

fn store_error(error: &BrokerError) -> StoreError {
    StoreError::Unavailable { store: "log", message: error.to_string(), retry_after: None }
}

/// Reads a topic up to where it ends now, so that a busy topic's scan has an end.
pub(super) fn scan(broker: &dyn Broker, info: &TableInfo, request: &ScanRequest) -> Result<Scan, StoreError> {
    let unknown = || StoreError::BadRequest(format!("unknown topic `{}`", info.name));
    let spec = broker.topic(&info.name).ok_or_else(unknown)?;
    let ends = broker.stats(&info.name).map_err(|e| store_error(&e))?.end;
    let ends: Positions = (0u32..).map(PartitionId).zip(ends.into_iter().map(Offset)).collect();
    let projection = match &request.columns {
        None => Projection::all(&spec),
        Some(columns) => Projection::of(&spec, &columns.iter().map(String::as_str).collect::<Vec<_>>()),
    };
    let mut reader = broker.reader(&info.name, &Positions::new()).map_err(|e| store_error(&e))?;
    let (schema, from, as_of) = (projection.schema.clone(), request.from, ends.clone());
    let mut done = ends.values().all(|end| end.0 == 0);
    let batches = std::iter::from_fn(move || {
        while !done {
            match reader.poll(SLICE) {
                Ok(None) => done = true,
                Ok(Some(slice)) => {
                    let at = reader.positions();
                    done = ends.iter().all(|(p, end)| end.0 == 0 || at.get(p).is_some_and(|o| o >= end));
                    let old = from.is_some_and(|from| slice.parts().iter().all(|part| part.max_event_time < from));
                    if !old {
                        return Some(slice.decode(&projection).map_err(|e| store_error(&e)));
                    }
                }
                Err(error) => {
                    done = true;
                    return Some(Err(store_error(&error)));
                }
            }
        }
        None
    });
    Ok(Scan { schema, as_of, batches: Box::new(batches) })
}
