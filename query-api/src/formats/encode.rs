//! Batches as bytes of a form that is streamed: CSV, Arrow stream, Parquet.

use super::Format;
use crate::cells::{Cells, csv_field};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use parking_lot::Mutex;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use std::io::Write;
use std::sync::Arc;

/// Rows of a Parquet row group: what is held before it can be sent.
const ROW_GROUP: usize = 65_536;

/// What a writer wrote and nobody has taken yet.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

enum Writer {
    Csv,
    Arrow(Box<StreamWriter<Buffer>>),
    Parquet(Box<ArrowWriter<Buffer>>),
}

/// Writes batches of one schema.
pub struct Encoder {
    writer: Writer,
    buffer: Buffer,
}

impl Encoder {
    /// For a form; JSON pages are written elsewhere, here it is as CSV.
    ///
    /// # Errors
    /// A schema that the form cannot hold.
    pub fn new(format: Format, schema: &SchemaRef) -> Result<Encoder, ArrowError> {
        let buffer = Buffer::default();
        let writer = match format {
            Format::Json | Format::Csv => {
                let mut line = String::new();
                for (i, field) in schema.fields().iter().enumerate() {
                    if i > 0 {
                        line.push(',');
                    }
                    csv_field(field.name(), &mut line);
                }
                line.push_str("\r\n");
                buffer.0.lock().extend_from_slice(line.as_bytes());
                Writer::Csv
            }
            Format::Arrow => Writer::Arrow(Box::new(StreamWriter::try_new(buffer.clone(), schema)?)),
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_max_row_group_row_count(Some(ROW_GROUP))
                    .build();
                let writer = ArrowWriter::try_new(buffer.clone(), schema.clone(), Some(properties)).map_err(parquet_error)?;
                Writer::Parquet(Box::new(writer))
            }
        };
        Ok(Encoder { writer, buffer })
    }

    /// Writes a batch.
    ///
    /// # Errors
    /// A value that the form cannot hold.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        match &mut self.writer {
            Writer::Csv => {
                let cells: Result<Vec<Cells>, ArrowError> = batch.columns().iter().map(|c| Cells::of(c.as_ref())).collect();
                let cells = cells?;
                let mut text = String::with_capacity(batch.num_rows() * 64);
                for row in 0..batch.num_rows() {
                    for (i, cell) in cells.iter().enumerate() {
                        if i > 0 {
                            text.push(',');
                        }
                        cell.csv(row, &mut text)?;
                    }
                    text.push_str("\r\n");
                }
                self.buffer.0.lock().extend_from_slice(text.as_bytes());
                Ok(())
            }
            Writer::Arrow(writer) => writer.write(batch),
            Writer::Parquet(writer) => writer.write(batch).map_err(parquet_error),
        }
    }

    /// Writes what stands at the end; no batch comes after.
    ///
    /// # Errors
    /// As [`Encoder::write`].
    pub fn finish(&mut self) -> Result<(), ArrowError> {
        match &mut self.writer {
            Writer::Csv => Ok(()),
            Writer::Arrow(writer) => writer.finish(),
            Writer::Parquet(writer) => writer.finish().map(|_| ()).map_err(parquet_error),
        }
    }

    /// The bytes written since the last time.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut *self.buffer.0.lock())
    }
}

fn parquet_error(error: ParquetError) -> ArrowError {
    ArrowError::ParquetError(error.to_string())
}
