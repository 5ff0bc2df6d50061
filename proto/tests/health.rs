//! Holds the messages of health checks against `schema/`: names come from there, and numbers from the code.

use std::path::Path;

use prost_reflect::{DescriptorPool, DynamicMessage, Value};
use thalweg_proto::{
    bindings::Message,
    health::{self, HealthCheckRequest, HealthCheckResponse, ServingStatus},
};

fn schema() -> DescriptorPool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let files = protox::compile(["grpc/health/v1/health.proto"], [root]).expect("it compiles");
    DescriptorPool::from_file_descriptor_set(files).expect("it is whole")
}

fn message(name: &str, field: &str, value: Value) -> Vec<u8> {
    let name = format!("grpc.health.v1.{name}");
    let descriptor = schema().get_message_by_name(&name).expect("a message");
    let mut message = DynamicMessage::new(descriptor);
    message.set_field_by_name(field, value);
    message.encode_to_vec()
}

#[test]
fn messages_are_those_of_the_schema() {
    let theirs = message("HealthCheckRequest", "service", Value::String("it".into()));
    let ours = HealthCheckRequest {
        service: "it".into(),
    };
    assert_eq!(ours.encode_to_vec(), theirs);
    assert_eq!(HealthCheckRequest::decode(&*theirs), Ok(ours));

    let status = schema()
        .get_enum_by_name("grpc.health.v1.HealthCheckResponse.ServingStatus")
        .expect("the enum");
    for (name, ours) in [
        ("UNKNOWN", ServingStatus::Unknown),
        ("SERVING", ServingStatus::Serving),
        ("NOT_SERVING", ServingStatus::NotServing),
        ("SERVICE_UNKNOWN", ServingStatus::ServiceUnknown),
    ] {
        let number = status.get_value_by_name(name).expect("a value").number();
        let theirs = message("HealthCheckResponse", "status", Value::EnumNumber(number));
        let ours = HealthCheckResponse::from(ours);
        let decoded = HealthCheckResponse::decode(&*theirs);
        assert_eq!(decoded.as_ref(), Ok(&ours), "{name}");
    }
}

#[test]
fn paths_are_those_of_the_schema() {
    let service = schema()
        .get_service_by_name(health::SERVICE)
        .expect("the service");
    let paths: Vec<String> = service
        .methods()
        .map(|method| format!("/{}/{}", service.full_name(), method.name()))
        .collect();
    assert_eq!(paths, [health::CHECK, health::WATCH]);
}
