//! quikflow-gateway
