// echo.proto for grpc-js, with messages as opaque bytes.
'use strict';

const same = (bytes) => bytes;

function method(name, requestStream, responseStream) {
  return {
    path: `/thalweg.interop.Echo/${name}`,
    requestStream,
    responseStream,
    requestSerialize: same,
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: same,
  };
}

const service = {
  Unary: method('Unary', false, false),
  Collect: method('Collect', true, false),
  Repeat: method('Repeat', false, true),
  Talk: method('Talk', true, true),
  Hang: method('Hang', true, true),
  Seen: method('Seen', false, false),
};

// A `Note`, for a text of less than 128 bytes.
const note = (text) => Buffer.concat([Buffer.from([0x0a, Buffer.byteLength(text)]), Buffer.from(text)]);

module.exports = { service, note };
