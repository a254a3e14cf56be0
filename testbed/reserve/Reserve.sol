// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.30;

interface Token {
    function transfer(address to, uint256 amount) external returns (bool);
    function transferFrom(address from, address to, uint256 amount) external returns (bool);
}

/// A stand-in for Tempo's channel reserve (TIP-1034), which the local chain does not have yet. Selectors, channel ids,
/// voucher digests, events, settlement and refunds are those of the real one; gas, storage layout, transfer policies and
/// the signatures of passkeys are not. It is planted as runtime code: no constructor, no immutables.
contract Reserve {
    struct ChannelDescriptor {
        address payer;
        address payee;
        address operator;
        address token;
        bytes32 salt;
        address authorizedSigner;
        bytes32 expiringNonceHash;
    }

    struct ChannelState {
        uint96 settled;
        uint96 deposit;
        uint32 closeRequestedAt;
    }

    struct Channel {
        ChannelDescriptor descriptor;
        ChannelState state;
    }

    error ChannelAlreadyExists();
    error ChannelNotFound();
    error NotPayer();
    error NotPayeeOrOperator();
    error InvalidPayee();
    error ZeroDeposit();
    error ExpiringNonceHashNotSet();
    error InvalidSignature();
    error AmountExceedsDeposit();
    error AmountNotIncreasing();
    error CaptureAmountInvalid();
    error CloseNotReady();
    error DepositOverflow();

    event ChannelOpened(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        address operator,
        address token,
        address authorizedSigner,
        bytes32 salt,
        bytes32 expiringNonceHash,
        uint96 deposit
    );
    event Settled(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint96 cumulativeAmount,
        uint96 deltaPaid,
        uint96 newSettled
    );
    event TopUp(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint96 additionalDeposit,
        uint96 newDeposit
    );
    event CloseRequested(
        bytes32 indexed channelId, address indexed payer, address indexed payee, uint256 closeGraceEnd
    );
    event CloseRequestCancelled(bytes32 indexed channelId, address indexed payer, address indexed payee);
    event ChannelClosed(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint96 settledToPayee,
        uint96 refundedToPayer
    );

    bytes32 public constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint96 cumulativeAmount)");
    uint64 public constant CLOSE_GRACE_PERIOD = 900;
    uint256 constant HALF_ORDER = 0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;

    /// Slot 0: channels by id.
    mapping(bytes32 => ChannelState) channels;
    /// Slot 1: hash of the transaction that is running, written from outside around each one, because a contract cannot
    /// see it. Zero in a simulation.
    bytes32 context;

    function open(
        address payee,
        address operator,
        address token,
        uint96 deposit,
        bytes32 salt,
        address authorizedSigner
    ) external returns (bytes32 channelId) {
        if (payee == address(0)) revert InvalidPayee();
        if (deposit == 0) revert ZeroDeposit();
        bytes32 nonceHash = context;
        if (nonceHash == 0) nonceHash = keccak256(abi.encode(msg.sender, block.number, gasleft()));
        channelId = computeChannelId(msg.sender, payee, operator, token, salt, authorizedSigner, nonceHash);
        if (channels[channelId].deposit != 0) revert ChannelAlreadyExists();
        channels[channelId] = ChannelState({settled: 0, deposit: deposit, closeRequestedAt: 0});
        require(Token(token).transferFrom(msg.sender, address(this), deposit));
        emit ChannelOpened(
            channelId, msg.sender, payee, operator, token, authorizedSigner, salt, nonceHash, deposit
        );
    }

    function topUp(ChannelDescriptor calldata descriptor, uint96 additionalDeposit) external {
        (bytes32 id, ChannelState storage state) = known(descriptor);
        if (msg.sender != descriptor.payer) revert NotPayer();
        if (additionalDeposit == 0) revert ZeroDeposit();
        if (additionalDeposit > type(uint96).max - state.deposit) revert DepositOverflow();
        state.deposit += additionalDeposit;
        if (state.closeRequestedAt != 0) {
            state.closeRequestedAt = 0;
            emit CloseRequestCancelled(id, descriptor.payer, descriptor.payee);
        }
        require(Token(descriptor.token).transferFrom(msg.sender, address(this), additionalDeposit));
        emit TopUp(id, descriptor.payer, descriptor.payee, additionalDeposit, state.deposit);
    }

    function settle(ChannelDescriptor calldata descriptor, uint96 cumulativeAmount, bytes calldata signature)
        external
    {
        (bytes32 id, ChannelState storage state) = known(descriptor);
        sellerOnly(descriptor);
        if (cumulativeAmount > state.deposit) revert AmountExceedsDeposit();
        if (cumulativeAmount <= state.settled) revert AmountNotIncreasing();
        signed(descriptor, id, cumulativeAmount, signature);
        uint96 delta = cumulativeAmount - state.settled;
        state.settled = cumulativeAmount;
        require(Token(descriptor.token).transfer(descriptor.payee, delta));
        emit Settled(id, descriptor.payer, descriptor.payee, cumulativeAmount, delta, cumulativeAmount);
    }

    function close(
        ChannelDescriptor calldata descriptor,
        uint96 cumulativeAmount,
        uint96 captureAmount,
        bytes calldata signature
    ) external {
        (bytes32 id, ChannelState storage state) = known(descriptor);
        sellerOnly(descriptor);
        if (captureAmount < state.settled || captureAmount > cumulativeAmount) revert CaptureAmountInvalid();
        if (captureAmount > state.deposit) revert AmountExceedsDeposit();
        signed(descriptor, id, cumulativeAmount, signature);
        finish(descriptor, id, captureAmount - state.settled, captureAmount, state.deposit - captureAmount);
    }

    function requestClose(ChannelDescriptor calldata descriptor) external {
        (bytes32 id, ChannelState storage state) = known(descriptor);
        if (msg.sender != descriptor.payer) revert NotPayer();
        if (state.closeRequestedAt != 0) return;
        state.closeRequestedAt = uint32(block.timestamp);
        emit CloseRequested(id, descriptor.payer, descriptor.payee, block.timestamp + CLOSE_GRACE_PERIOD);
    }

    function withdraw(ChannelDescriptor calldata descriptor) external {
        (bytes32 id, ChannelState storage state) = known(descriptor);
        if (msg.sender != descriptor.payer) revert NotPayer();
        if (state.closeRequestedAt == 0 || block.timestamp < state.closeRequestedAt + CLOSE_GRACE_PERIOD) {
            revert CloseNotReady();
        }
        finish(descriptor, id, 0, state.settled, state.deposit - state.settled);
    }

    function getChannel(ChannelDescriptor calldata descriptor) external view returns (Channel memory) {
        return Channel({descriptor: descriptor, state: channels[idOf(descriptor)]});
    }

    function getChannelState(bytes32 channelId) external view returns (ChannelState memory) {
        return channels[channelId];
    }

    function getChannelStatesBatch(bytes32[] calldata channelIds)
        external
        view
        returns (ChannelState[] memory states)
    {
        states = new ChannelState[](channelIds.length);
        for (uint256 i = 0; i < channelIds.length; i++) states[i] = channels[channelIds[i]];
    }

    function computeChannelId(
        address payer,
        address payee,
        address operator,
        address token,
        bytes32 salt,
        address authorizedSigner,
        bytes32 expiringNonceHash
    ) public view returns (bytes32) {
        return keccak256(
            abi.encode(
                payer, payee, operator, token, salt, authorizedSigner, expiringNonceHash, address(this), block.chainid
            )
        );
    }

    function getVoucherDigest(bytes32 channelId, uint96 cumulativeAmount) public view returns (bytes32) {
        bytes32 voucher = keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, cumulativeAmount));
        return keccak256(abi.encodePacked(hex"1901", domainSeparator(), voucher));
    }

    function domainSeparator() public view returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("TIP20 Channel Reserve"),
                keccak256("1"),
                block.chainid,
                address(this)
            )
        );
    }

    function idOf(ChannelDescriptor calldata d) internal view returns (bytes32) {
        return computeChannelId(d.payer, d.payee, d.operator, d.token, d.salt, d.authorizedSigner, d.expiringNonceHash);
    }

    function known(ChannelDescriptor calldata descriptor)
        internal
        view
        returns (bytes32 id, ChannelState storage state)
    {
        if (descriptor.expiringNonceHash == 0) revert ExpiringNonceHashNotSet();
        id = idOf(descriptor);
        state = channels[id];
        if (state.deposit == 0) revert ChannelNotFound();
    }

    function sellerOnly(ChannelDescriptor calldata d) internal view {
        bool operator = d.operator != address(0) && msg.sender == d.operator;
        if (msg.sender != d.payee && !operator) revert NotPayeeOrOperator();
    }

    /// Exactly `r || s || v`, s in the lower half, v 27 or 28: a seller that keeps another form cannot collect.
    function signed(ChannelDescriptor calldata d, bytes32 id, uint96 amount, bytes calldata signature) internal view {
        if (signature.length != 65) revert InvalidSignature();
        bytes32 r = bytes32(signature[0:32]);
        bytes32 s = bytes32(signature[32:64]);
        uint8 v = uint8(signature[64]);
        if (uint256(s) > HALF_ORDER || (v != 27 && v != 28)) revert InvalidSignature();
        address signer = ecrecover(getVoucherDigest(id, amount), v, r, s);
        address expected = d.authorizedSigner == address(0) ? d.payer : d.authorizedSigner;
        if (signer == address(0) || signer != expected) revert InvalidSignature();
    }

    function finish(ChannelDescriptor calldata d, bytes32 id, uint96 pays, uint96 captured, uint96 refund) internal {
        delete channels[id];
        if (pays != 0) require(Token(d.token).transfer(d.payee, pays));
        if (refund != 0) require(Token(d.token).transfer(d.payer, refund));
        emit ChannelClosed(id, d.payer, d.payee, captured, refund);
    }
}
