//! RMI 1.0 and 2.0 against the specification's failure conditions, through the in-process host.

#[path = "rmi/harness.rs"]
mod harness;

#[path = "rmi/data.rs"]
mod data;
#[path = "rmi/granule.rs"]
mod granule;
#[path = "rmi/model.rs"]
mod model;
#[path = "rmi/psci.rs"]
mod psci;
#[path = "rmi/realm.rs"]
mod realm;
#[path = "rmi/rec.rs"]
mod rec;
#[path = "rmi/ripas.rs"]
mod ripas;
#[path = "rmi/rsi.rs"]
mod rsi;
#[path = "rmi/run.rs"]
mod run;
#[path = "rmi/stress.rs"]
mod stress;
#[path = "rmi/strictness.rs"]
mod strictness;
#[path = "rmi/tables.rs"]
mod tables;
#[path = "rmi/v2_global.rs"]
mod v2_global;
#[path = "rmi/v2_model.rs"]
mod v2_model;
#[path = "rmi/v2_operation_model.rs"]
mod v2_operation_model;
#[path = "rmi/v2_operations.rs"]
mod v2_operations;
#[path = "rmi/v2_ranges.rs"]
mod v2_ranges;
#[path = "rmi/v2_run.rs"]
mod v2_run;
#[path = "rmi/v2_stress.rs"]
mod v2_stress;
