// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;
/// Test doubles of what x402 stands on: a dollar token with EIP-3009 and EIP-2612, Permit2, the two x402 proxies, and two
/// contracts that a facilitator may look for when it starts. Selectors, typed data, checks and events are those of the real
/// ones; gas, storage layout, upgrades and the token's administration are not. No constructors and no storage initialisers:
/// runtime code is planted at the well-known addresses of whatever chain the local one claims to be.

interface IERC1271 { function isValidSignature(bytes32, bytes calldata) external view returns (bytes4); }

library Sig {
    function ok(address who, bytes32 h, bytes memory sig) internal view returns (bool) {
        if (who.code.length > 0) {
            (bool s, bytes memory r) = who.staticcall(abi.encodeCall(IERC1271.isValidSignature, (h, sig)));
            return s && r.length >= 32 && bytes4(r) == IERC1271.isValidSignature.selector;
        }
        if (sig.length != 65) return false;
        bytes32 r_; bytes32 s_; uint8 v_;
        assembly { r_ := mload(add(sig, 32)) s_ := mload(add(sig, 64)) v_ := byte(0, mload(add(sig, 96))) }
        if (v_ < 27) v_ += 27;
        return ecrecover(h, v_, r_, s_) == who && who != address(0);
    }
}

contract LocalUSDC {
    /// What the token is called in typed data differs from chain to chain.
    function name() public view returns (string memory) { return block.chainid == 84532 ? "USDC" : "USD Coin"; }
    string public constant symbol = "USDC";
    string public constant version = "2";
    uint8 public constant decimals = 6;
    uint256 public totalSupply;
    mapping(address => uint256) public balanceOf;
    mapping(address => mapping(address => uint256)) public allowance;
    mapping(address => uint256) public nonces;
    mapping(address => mapping(bytes32 => bool)) public authorizationState;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
    event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);

    bytes32 constant DOMAIN = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 constant TWA = keccak256("TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)");
    bytes32 constant RWA = keccak256("ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)");
    bytes32 constant CA = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
    bytes32 constant PERMIT = keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");

    function DOMAIN_SEPARATOR() public view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN, keccak256(bytes(name())), keccak256(bytes(version)), block.chainid, address(this)));
    }
    function _digest(bytes32 s) internal view returns (bytes32) { return keccak256(abi.encodePacked("\x19\x01", DOMAIN_SEPARATOR(), s)); }
    function _move(address f, address t, uint256 v) internal {
        require(balanceOf[f] >= v, "ERC20: transfer amount exceeds balance");
        unchecked { balanceOf[f] -= v; } balanceOf[t] += v; emit Transfer(f, t, v);
    }
    function mint(address t, uint256 v) external { totalSupply += v; balanceOf[t] += v; emit Transfer(address(0), t, v); }
    function transfer(address t, uint256 v) external returns (bool) { _move(msg.sender, t, v); return true; }
    function approve(address s, uint256 v) external returns (bool) { allowance[msg.sender][s] = v; emit Approval(msg.sender, s, v); return true; }
    function transferFrom(address f, address t, uint256 v) external returns (bool) {
        uint256 a = allowance[f][msg.sender];
        require(a >= v, "ERC20: transfer amount exceeds allowance");
        if (a != type(uint256).max) allowance[f][msg.sender] = a - v;
        _move(f, t, v); return true;
    }
    function permit(address o, address s, uint256 v, uint256 d, uint8 sv, bytes32 r, bytes32 ss) external {
        require(block.timestamp <= d, "FiatTokenV2: permit is expired");
        bytes32 h = _digest(keccak256(abi.encode(PERMIT, o, s, v, nonces[o]++, d)));
        require(Sig.ok(o, h, abi.encodePacked(r, ss, sv)), "EIP2612: invalid signature");
        allowance[o][s] = v; emit Approval(o, s, v);
    }
    function _auth(bytes32 typ, address f, address t, uint256 v, uint256 va, uint256 vb, bytes32 n, bytes memory sig) internal {
        require(block.timestamp > va, "FiatTokenV2: authorization is not yet valid");
        require(block.timestamp < vb, "FiatTokenV2: authorization is expired");
        require(!authorizationState[f][n], "FiatTokenV2: authorization is used or canceled");
        require(Sig.ok(f, _digest(keccak256(abi.encode(typ, f, t, v, va, vb, n))), sig), "FiatTokenV2: invalid signature");
        authorizationState[f][n] = true; emit AuthorizationUsed(f, n); _move(f, t, v);
    }
    function transferWithAuthorization(address f, address t, uint256 v, uint256 va, uint256 vb, bytes32 n, bytes memory sig) external { _auth(TWA, f, t, v, va, vb, n, sig); }
    function transferWithAuthorization(address f, address t, uint256 v, uint256 va, uint256 vb, bytes32 n, uint8 sv, bytes32 r, bytes32 s) external { _auth(TWA, f, t, v, va, vb, n, abi.encodePacked(r, s, sv)); }
    function receiveWithAuthorization(address f, address t, uint256 v, uint256 va, uint256 vb, bytes32 n, bytes memory sig) external { require(t == msg.sender, "FiatTokenV2: caller must be the payee"); _auth(RWA, f, t, v, va, vb, n, sig); }
    function receiveWithAuthorization(address f, address t, uint256 v, uint256 va, uint256 vb, bytes32 n, uint8 sv, bytes32 r, bytes32 s) external { require(t == msg.sender, "FiatTokenV2: caller must be the payee"); _auth(RWA, f, t, v, va, vb, n, abi.encodePacked(r, s, sv)); }
    function cancelAuthorization(address a, bytes32 n, bytes memory sig) public {
        require(!authorizationState[a][n], "FiatTokenV2: authorization is used or canceled");
        require(Sig.ok(a, _digest(keccak256(abi.encode(CA, a, n))), sig), "FiatTokenV2: invalid signature");
        authorizationState[a][n] = true; emit AuthorizationCanceled(a, n);
    }
    function cancelAuthorization(address a, bytes32 n, uint8 v, bytes32 r, bytes32 s) external { cancelAuthorization(a, n, abi.encodePacked(r, s, v)); }
}

interface IPermit2Like {
    struct TokenPermissions { address token; uint256 amount; }
    struct PermitTransferFrom { TokenPermissions permitted; uint256 nonce; uint256 deadline; }
    struct SignatureTransferDetails { address to; uint256 requestedAmount; }
    function permitWitnessTransferFrom(PermitTransferFrom memory, SignatureTransferDetails calldata, address owner, bytes32 witness, string calldata witnessTypeString, bytes calldata sig) external;
}

contract LocalPermit2 {
    mapping(address => mapping(uint256 => uint256)) public nonceBitmap;
    error SignatureExpired(uint256 deadline);
    error InvalidAmount(uint256 maxAmount);
    error InvalidNonce();
    error InvalidSigner();
    function DOMAIN_SEPARATOR() public view returns (bytes32) {
        return keccak256(abi.encode(keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)"), keccak256("Permit2"), block.chainid, address(this)));
    }
    function permitWitnessTransferFrom(IPermit2Like.PermitTransferFrom memory p, IPermit2Like.SignatureTransferDetails calldata d, address owner, bytes32 witness, string calldata wts, bytes calldata sig) external {
        if (block.timestamp > p.deadline) revert SignatureExpired(p.deadline);
        if (d.requestedAmount > p.permitted.amount) revert InvalidAmount(p.permitted.amount);
        uint256 bit = 1 << uint8(p.nonce);
        uint256 word = nonceBitmap[owner][p.nonce >> 8];
        if (word & bit != 0) revert InvalidNonce();
        nonceBitmap[owner][p.nonce >> 8] = word | bit;
        bytes32 typ = keccak256(abi.encodePacked("PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,", wts));
        bytes32 tp = keccak256(abi.encode(keccak256("TokenPermissions(address token,uint256 amount)"), p.permitted.token, p.permitted.amount));
        bytes32 h = keccak256(abi.encodePacked("\x19\x01", DOMAIN_SEPARATOR(), keccak256(abi.encode(typ, tp, msg.sender, p.nonce, p.deadline, witness))));
        if (!Sig.ok(owner, h, sig)) revert InvalidSigner();
        require(LocalUSDC(p.permitted.token).transferFrom(owner, d.to, d.requestedAmount), "TRANSFER_FROM_FAILED");
    }
}

abstract contract LocalProxyBase {
    address public constant PERMIT2 = 0x000000000022D473030F116dDEE9F6B43aC78BA3;
    event Settled();
    event SettledWithPermit();
    error InvalidDestination(); error PaymentTooEarly(); error InvalidOwner(); error InvalidAmount(); error Permit2612AmountMismatch();
    struct EIP2612Permit { uint256 value; uint256 deadline; bytes32 r; bytes32 s; uint8 v; }
    function _go(IPermit2Like.PermitTransferFrom calldata p, uint256 amt, address owner, address to, uint256 va, bytes32 wh, string memory wts, bytes calldata sig) internal {
        if (amt == 0) revert InvalidAmount();
        if (owner == address(0)) revert InvalidOwner();
        if (to == address(0)) revert InvalidDestination();
        if (block.timestamp < va) revert PaymentTooEarly();
        IPermit2Like(PERMIT2).permitWitnessTransferFrom(p, IPermit2Like.SignatureTransferDetails(to, amt), owner, wh, wts, sig);
    }
    function _permit(address token, address owner, EIP2612Permit calldata e, uint256 max) internal {
        if (e.value != max) revert Permit2612AmountMismatch();
        try LocalUSDC(token).permit(owner, PERMIT2, e.value, e.deadline, e.v, e.r, e.s) {} catch {}
    }
}

contract LocalExactProxy is LocalProxyBase {
    struct Witness { address to; uint256 validAfter; }
    string public constant WITNESS_TYPE_STRING = "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,uint256 validAfter)";
    bytes32 public constant WITNESS_TYPEHASH = keccak256("Witness(address to,uint256 validAfter)");
    function settle(IPermit2Like.PermitTransferFrom calldata p, address owner, Witness calldata w, bytes calldata sig) external { _s(p, owner, w, sig); emit Settled(); }
    function settleWithPermit(EIP2612Permit calldata e, IPermit2Like.PermitTransferFrom calldata p, address owner, Witness calldata w, bytes calldata sig) external {
        _permit(p.permitted.token, owner, e, p.permitted.amount); _s(p, owner, w, sig); emit SettledWithPermit();
    }
    function _s(IPermit2Like.PermitTransferFrom calldata p, address owner, Witness calldata w, bytes calldata sig) internal {
        _go(p, p.permitted.amount, owner, w.to, w.validAfter, keccak256(abi.encode(WITNESS_TYPEHASH, w.to, w.validAfter)), WITNESS_TYPE_STRING, sig);
    }
}

contract LocalUptoProxy is LocalProxyBase {
    struct Witness { address to; address facilitator; uint256 validAfter; }
    error AmountExceedsPermitted(); error UnauthorizedFacilitator();
    string public constant WITNESS_TYPE_STRING = "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,address facilitator,uint256 validAfter)";
    bytes32 public constant WITNESS_TYPEHASH = keccak256("Witness(address to,address facilitator,uint256 validAfter)");
    function settle(IPermit2Like.PermitTransferFrom calldata p, uint256 amount, address owner, Witness calldata w, bytes calldata sig) external { _s(p, amount, owner, w, sig); emit Settled(); }
    function settleWithPermit(EIP2612Permit calldata e, IPermit2Like.PermitTransferFrom calldata p, uint256 amount, address owner, Witness calldata w, bytes calldata sig) external {
        _permit(p.permitted.token, owner, e, p.permitted.amount); _s(p, amount, owner, w, sig); emit SettledWithPermit();
    }
    function _s(IPermit2Like.PermitTransferFrom calldata p, uint256 amount, address owner, Witness calldata w, bytes calldata sig) internal {
        if (amount > p.permitted.amount) revert AmountExceedsPermitted();
        if (w.facilitator != msg.sender) revert UnauthorizedFacilitator();
        _go(p, amount, owner, w.to, w.validAfter, keccak256(abi.encode(WITNESS_TYPEHASH, w.to, w.facilitator, w.validAfter)), WITNESS_TYPE_STRING, sig);
    }
}

// x402-rs looks for these two when it starts.
contract LocalValidator6492 {
    function isValidSig(address who, bytes32 h, bytes calldata sig) external view returns (bool) { return Sig.ok(who, h, sig); }
    function isValidSigWithSideEffects(address who, bytes32 h, bytes calldata sig) external view returns (bool) { return Sig.ok(who, h, sig); }
}

contract LocalMulticall3 {
    struct Call { address target; bytes callData; }
    struct Call3 { address target; bool allowFailure; bytes callData; }
    struct Result { bool success; bytes returnData; }
    function getEthBalance(address a) external view returns (uint256) { return a.balance; }
    function aggregate3(Call3[] calldata cs) external payable returns (Result[] memory out) {
        out = new Result[](cs.length);
        for (uint256 i; i < cs.length; i++) {
            (out[i].success, out[i].returnData) = cs[i].target.call(cs[i].callData);
            require(out[i].success || cs[i].allowFailure, "Multicall3: call failed");
        }
    }
    function tryAggregate(bool must, Call[] calldata cs) external payable returns (Result[] memory out) {
        out = new Result[](cs.length);
        for (uint256 i; i < cs.length; i++) {
            (out[i].success, out[i].returnData) = cs[i].target.call(cs[i].callData);
            require(out[i].success || !must, "Multicall3: call failed");
        }
    }
}
