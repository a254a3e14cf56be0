// The chains that the local one can say it is.
import { arbitrum, base, baseSepolia, polygon } from 'viem/chains'

/** What v1 calls a chain; Arbitrum has no name there. */
export const V1_NAMES = { 84532: 'base-sepolia', 8453: 'base', 137: 'polygon' }

/** The same of Solana's networks. */
export const SVM_V1_NAMES = {
  'solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp': 'solana', 'solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1': 'solana-devnet',
}

/** Native USDC, and its name in typed data (version "2"). */
export const USDC = {
  84532: { asset: '0x036CbD53842c5426634e7929541eC2318f3dCF7e', name: 'USDC' },
  8453: { asset: '0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913', name: 'USD Coin' },
  137: { asset: '0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359', name: 'USD Coin' },
  42161: { asset: '0xaf88d065e77c8cC2239327C5EDb3A432268e5831', name: 'USD Coin' },
}

export function evmChain(id) {
  const chain = [baseSepolia, base, polygon, arbitrum].find((known) => known.id === Number(id))
  if (!chain) throw new Error(`chain ${id} is not known here`)
  return chain
}
