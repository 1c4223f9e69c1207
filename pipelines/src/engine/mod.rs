//! Timely workers, epochs, time, recovery, accounts.
