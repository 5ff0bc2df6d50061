//! As much of gRPC server reflection as tells which methods a service has. Its versions v1 and v1alpha are alike in this.

use bytes::Bytes;
use prost::Message;

/// Asks for the file that declares a service.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReflectionRequest {
    /// The full name of the service.
    #[prost(string, tag = "4")]
    pub file_containing_symbol: String,
}

/// The file, or why there is none.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReflectionResponse {
    /// The file, perhaps with those that it imports.
    #[prost(message, optional, tag = "4")]
    pub file_descriptor_response: Option<FileDescriptorResponse>,
    /// Why there is none.
    #[prost(message, optional, tag = "7")]
    pub error_response: Option<ErrorResponse>,
}

/// Files, encoded.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileDescriptorResponse {
    /// Each a [`FileDescriptor`].
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub file_descriptor_proto: Vec<Bytes>,
}

/// Why there is no file.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ErrorResponse {
    /// A gRPC code.
    #[prost(int32, tag = "1")]
    pub error_code: i32,
    /// In words.
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// A `.proto` file, as far as its services go.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileDescriptor {
    /// Its package.
    #[prost(string, tag = "2")]
    pub package: String,
    /// Its services.
    #[prost(message, repeated, tag = "6")]
    pub service: Vec<Service>,
}

/// A service.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Service {
    /// Its name within the package.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its methods.
    #[prost(message, repeated, tag = "2")]
    pub method: Vec<Named>,
}

/// A method.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Named {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// The methods of a service, if the file declares it.
pub fn methods(file: &FileDescriptor, service: &str) -> Option<Vec<String>> {
    let name = match &*file.package {
        "" => service,
        package => service.strip_prefix(package)?.strip_prefix('.')?,
    };
    let service = file.service.iter().find(|known| known.name == name)?;
    Some(
        service
            .method
            .iter()
            .map(|method| method.name.clone())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(package: &str, services: &[(&str, &[&str])]) -> FileDescriptor {
        let named = |name: &&str| Named {
            name: (*name).into(),
        };
        let services = services.iter().map(|(name, methods)| Service {
            name: (*name).into(),
            method: methods.iter().map(named).collect(),
        });
        FileDescriptor {
            package: package.into(),
            service: services.collect(),
        }
    }

    #[test]
    fn methods_are_those_of_the_named_service() {
        let services: &[(&str, &[&str])] = &[
            ("InputBinding", &["Init", "Read"]),
            ("OutputBinding", &["Init", "Invoke"]),
            ("Idle", &[]),
        ];
        let file = file("components.v1", services);

        let found = methods(&file, "components.v1.OutputBinding");
        assert_eq!(found, Some(vec!["Init".into(), "Invoke".into()]));
        assert_eq!(methods(&file, "components.v1.Idle"), Some(vec![]));
    }

    #[test]
    fn service_of_another_package_is_not_it() {
        let file = file("components.v1", &[("OutputBinding", &["Init"])]);

        for service in [
            "components.v2.OutputBinding",
            "components.v1beta.OutputBinding",
            "components.v1.beta.OutputBinding",
            "components.v1OutputBinding",
            "components.v1.OutputBindingAlpha",
            "components.v1.Output",
            "components.v1.",
            "components.v1",
            "my.components.v1.OutputBinding",
            "OutputBinding",
            "",
        ] {
            assert_eq!(methods(&file, service), None, "{service}");
        }
    }

    #[test]
    fn service_may_have_no_package() {
        let file = file("", &[("OutputBinding", &["Init"])]);

        assert_eq!(methods(&file, "OutputBinding"), Some(vec!["Init".into()]));
        assert_eq!(methods(&file, ".OutputBinding"), None);
    }

    #[test]
    fn answers_have_the_tags_of_the_protocol() {
        let request = ReflectionRequest {
            file_containing_symbol: "a.B".into(),
        };
        assert_eq!(request.encode_to_vec(), b"\x22\x03a.B");

        // 1: host, 2: the request, 4: { 1: file }
        let response = b"\x0a\x01h\x12\x05\x22\x03a.B\x22\x06\x0a\x04file";
        let response = ReflectionResponse::decode(&response[..]).unwrap();
        let files = response.file_descriptor_response.unwrap();
        assert_eq!(files.file_descriptor_proto, ["file"]);

        // 7: { 1: 5, 2: "none" }
        let response = ReflectionResponse::decode(&b"\x3a\x08\x08\x05\x12\x04none"[..]).unwrap();
        let error = response.error_response.unwrap();
        assert_eq!((error.error_code, &*error.error_message), (5, "none"));
    }
}
