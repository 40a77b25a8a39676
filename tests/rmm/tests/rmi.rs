//! RMI 1.0 against the specification's failure conditions, through the in-process host.

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
#[path = "rmi/tables.rs"]
mod tables;
