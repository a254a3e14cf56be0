// Records what the published x402 clients send, as tests/golden/x402-*.json: `node golden.mjs <folder>`.
// Keys are public development keys; nothing here touches a network but a stand-in for a Solana node on loopback.
import { createServer } from "node:http";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { x402Client } from "@x402/core/client";
import { encodePaymentSignatureHeader } from "@x402/core/http";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { UptoEvmScheme } from "@x402/evm/upto/client";
import { ExactSvmScheme } from "@x402/svm/exact/client";
import { createPaymentHeader } from "x402/client";
import { createKeyPairSignerFromPrivateKeyBytes } from "@solana/kit";
import { privateKeyToAccount } from "viem/accounts";

const folder = process.argv[2];
const payer = privateKeyToAccount("0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d");
const payTo = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
const facilitatorAddress = "0x90F79bf6EB2c4f870365E785982E1f101E93b906";
const seed = Buffer.alloc(32, 7);
const svmPayer = await createKeyPairSignerFromPrivateKeyBytes(seed);
const svmPayTo = (await createKeyPairSignerFromPrivateKeyBytes(Buffer.alloc(32, 8))).address;
const feePayer = (await createKeyPairSignerFromPrivateKeyBytes(Buffer.alloc(32, 9))).address;

// A Solana node that knows one mint of six decimals and one blockhash.
const mint = Buffer.alloc(82);
mint[44] = 6;
mint[45] = 1;
const context = { slot: 1, apiVersion: "2.0.0" };
const answers = {
  getAccountInfo: {
    context,
    value: {
      data: [mint.toString("base64"), "base64"],
      executable: false,
      lamports: 1461600,
      owner: "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA",
      rentEpoch: 0,
      space: 82,
    },
  },
  simulateTransaction: { context, value: { err: null, logs: [], unitsConsumed: 6000, accounts: null, returnData: null } },
  getLatestBlockhash: {
    context,
    value: { blockhash: "EkSnNWid2cvwEVnVx9aBqawnmiCNiDgp3gUdkDPTKN1N", lastValidBlockHeight: 1000 },
  },
};
const node = createServer((request, response) => {
  let body = "";
  request.on("data", (chunk) => (body += chunk));
  request.on("end", () => {
    const { id, method } = JSON.parse(body);
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ jsonrpc: "2.0", id, result: answers[method] }));
  });
});
await new Promise((ready) => node.listen(0, "127.0.0.1", ready));
const rpcUrl = `http://127.0.0.1:${node.address().port}`;

const signer = Object.assign(payer, { readContract: async () => 0n });
const client = new x402Client()
  .register("eip155:*", new ExactEvmScheme(signer))
  .register("eip155:*", new UptoEvmScheme(signer))
  .register("solana:*", new ExactSvmScheme(svmPayer, { rpcUrl }));

const resource = { url: "http://127.0.0.1:8402/v1/chat/completions", description: "one chat completion", mimeType: "application/json" };
const entry = (scheme, network, asset, to, extra) => ({
  scheme, network, amount: "20000", asset, payTo: to, maxTimeoutSeconds: 300, extra: { ...extra, offer: "b2ZmZXI" },
});
const sepolia = ["eip155:84532", "0x036CbD53842c5426634e7929541eC2318f3dCF7e", payTo];
const base = ["eip155:8453", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", payTo];
const permit2 = { name: "USDC", version: "2", assetTransferMethod: "permit2" };
const offers = {
  "exact-eip3009": entry("exact", ...base, { name: "USD Coin", version: "2" }),
  "exact-eip3009-sepolia": entry("exact", ...sepolia, { name: "USDC", version: "2" }),
  "exact-permit2": entry("exact", ...sepolia, permit2),
  "upto": entry("upto", ...sepolia, { ...permit2, facilitatorAddress }),
  "exact-solana": entry("exact", "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1", "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU", svmPayTo, { feePayer }),
  "exact-solana-memo": entry("exact", "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1", "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU", svmPayTo, { feePayer, memo: "order 17" }),
};
const extensions = { eip2612GasSponsoring: { info: { description: "The facilitator accepts EIP-2612 gasless Permit to `Permit2` canonical contract.", version: "1" }, schema: { type: "object" } } };

const record = (name, producedBy, offer, header, value) => {
  const golden = { producedBy, at: Math.floor(Date.now() / 1000), payer: offer.network.startsWith("solana") ? svmPayer.address : payer.address, offer, header, value };
  writeFileSync(join(folder, `x402-${name}.json`), JSON.stringify(golden, null, 2) + "\n");
};

for (const [name, offer] of Object.entries(offers)) {
  const required = { x402Version: 2, error: "Payment required", resource, accepts: [offer] };
  if (offer.extra.assetTransferMethod) required.extensions = extensions;
  const payload = await client.createPaymentPayload(required);
  record(name, "@x402/core, evm, svm 2.27.0", offer, "payment-signature", encodePaymentSignatureHeader(payload));
}

const v1 = ({ amount, extra: { offer, ...extra }, ...entry }, network) => ({
  ...entry, network, maxAmountRequired: amount, resource: resource.url, description: resource.description, mimeType: resource.mimeType, extra,
});
const legacy = { "v1-eip3009": [offers["exact-eip3009-sepolia"], "base-sepolia", payer], "v1-solana": [offers["exact-solana"], "solana-devnet", svmPayer] };
for (const [name, [offer, network, key]] of Object.entries(legacy)) {
  const header = await createPaymentHeader(key, 1, v1(offer, network), { svmConfig: { rpcUrl } });
  record(name, "x402-fetch 1.2.0", offer, "x-payment", header);
}
node.close();
