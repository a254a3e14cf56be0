"""The PyPI x402 clients, pointed at local chains, with a record of what was paid. Nothing here knows the gate."""

import json

from eth_account import Account
from x402 import x402Client, x402ClientSync
from x402.mechanisms.evm import EthAccountSignerWithRPC
from x402.mechanisms.evm.exact import register_exact_evm_client
from x402.mechanisms.evm.upto import UptoEvmClientScheme


def wallet(o, payments, sync=False):
    """`scheme`, `network` and `transfer` narrow what it will pay, as in wallet.mjs; without them the choice is the client's."""
    client = x402ClientSync() if sync else x402Client()
    payers = {}
    if "rpc" in o:
        account = Account.from_key(o["key"])
        signer = EthAccountSignerWithRPC(account, rpc_url=o["rpc"])
        register_exact_evm_client(client, signer)
        client.register("eip155:*", UptoEvmClientScheme(signer))
        payers["evm"] = account.address
    if "svm_rpc" in o:
        from solders.keypair import Keypair
        from x402.mechanisms.svm import KeypairSigner
        from x402.mechanisms.svm.exact.register import register_exact_svm_client

        keypair = Keypair.from_seed(bytes.fromhex(o["svm_key"]))
        register_exact_svm_client(client, KeypairSigner(keypair), rpc_url=o["svm_rpc"])
        payers["svm"] = str(keypair.pubkey())

    def wanted(offer):
        transfer = (offer.extra or {}).get("assetTransferMethod", "eip3009")
        return (
            o.get("scheme", offer.scheme) == offer.scheme
            and o.get("network", offer.network) == offer.network
            and o.get("transfer", transfer) == transfer
        )

    if {"scheme", "network", "transfer"} & o.keys():
        client.register_policy(lambda version, offers: [offer for offer in offers if wanted(offer)])

    def paid(context):
        payments.append(json.loads(context.payment_payload.model_dump_json(by_alias=True, exclude_none=True)))

    async def paid_async(context):
        paid(context)

    client.on_after_payment_creation(paid if sync else paid_async)
    return client, payers
