// Azurite's Blob service, with its blobs in memory. Takes an account and its key, prints its port, and ends with its standard
// input.
'use strict';

const [account, key] = process.argv.splice(2);
process.env.AZURITE_ACCOUNTS = `${account}:${key}`;
// It takes its settings as a program does; that its answers are of an older version of the API is no fault here.
process.argv.push('--blobPort', '0', '--inMemoryPersistence', '--silent', '--disableTelemetry', '--skipApiVersionCheck');

const { BlobServerFactory } = require('azurite/dist/src/blob/BlobServerFactory');

async function main() {
  const server = await new BlobServerFactory().createServer();
  await server.start();
  console.log(new URL(server.getHttpServerAddress()).port);
}

main();
process.stdin.resume().on('end', () => process.exit(0));
