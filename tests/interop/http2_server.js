// A plain HTTP/2 server without TLS, on Node's own stack. Prints its port, and ends with its standard input.
'use strict';

const crypto = require('node:crypto');
const http2 = require('node:http2');

const server = http2.createServer((request, response) => {
  const digest = crypto.createHash('sha256');
  let size = 0;
  request.on('data', (bytes) => {
    size += bytes.length;
    digest.update(bytes);
  });
  request.on('end', () => {
    response.setHeader('content-type', 'text/plain');
    response.end(`${request.method} ${size} ${digest.digest('hex')}`);
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.resume().on('end', () => process.exit(0));
