//! The little of other people's contracts that is read: EIP-20, EIP-3009, Permit2 and x402's two proxies.

#![allow(missing_docs)]

alloy::sol! {
    event Transfer(address indexed from, address indexed to, uint256 value);
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
    event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);
    event UnorderedNonceInvalidation(address indexed owner, uint256 word, uint256 mask);

    function authorizationState(address authorizer, bytes32 nonce);
    function nonceBitmap(address owner, uint256 word);

    struct TokenPermissions { address token; uint256 amount; }
    struct PermitTransferFrom { TokenPermissions permitted; uint256 nonce; uint256 deadline; }
    struct Eip2612Permit { uint256 value; uint256 deadline; bytes32 r; bytes32 s; uint8 v; }
    struct ExactWitness { address to; uint256 validAfter; }
    struct UptoWitness { address to; address facilitator; uint256 validAfter; }

    interface ExactProxy {
        function settle(PermitTransferFrom permit, address owner, ExactWitness witness, bytes signature);
        function settleWithPermit(Eip2612Permit approval, PermitTransferFrom permit, address owner, ExactWitness witness, bytes signature);
    }

    interface UptoProxy {
        function settle(PermitTransferFrom permit, uint256 amount, address owner, UptoWitness witness, bytes signature);
        function settleWithPermit(Eip2612Permit approval, PermitTransferFrom permit, uint256 amount, address owner, UptoWitness witness, bytes signature);
    }
}
