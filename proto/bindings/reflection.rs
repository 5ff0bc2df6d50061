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
    let name = service.strip_prefix(&*file.package)?.strip_prefix('.')?;
    let service = file.service.iter().find(|known| known.name == name)?;
    Some(
        service
            .method
            .iter()
            .map(|method| method.name.clone())
            .collect(),
    )
}
