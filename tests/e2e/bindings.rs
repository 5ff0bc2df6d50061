//! Bindings: whole proxies between clients of gRPC and of plain HTTP, and scripted components, runtimes and web services.
//!
//! | file | what it promises |
//! |---|---|
//! | `grpc` | `InvokeBindingAlpha1` and `InvokeBinding`, and what clients get that do not keep to them |
//! | `http` | the same over plain HTTP |
//! | `component` | how a component is found, told its settings and looked after |
//! | `endings` | who hears what when somebody leaves, dies or breaks the rules |
//! | `fallback` | far sides that know no streams |
//! | `resiliency` | timeouts, retries, breakers |
//! | `service` | web services behind a binding |
//! | `object_store` | objects in folders and in memory |
//! | `memory` | that it stays flat |

mod component;
mod endings;
mod fallback;
mod grpc;
mod http;
mod memory;
mod object_store;
mod resiliency;
mod service;
