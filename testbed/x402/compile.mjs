// Compiles LocalStack.sol once per version of its source and prints the path of a JSON object: contract name to runtime code
// (hex). The result lies beside the installed packages, never in the repository.
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const source = readFileSync(new URL('./LocalStack.sol', import.meta.url), 'utf8')
const self = readFileSync(fileURLToPath(import.meta.url))
const folder = fileURLToPath(new URL('../node_modules/.cache/pontage/', import.meta.url))
const out = `${folder}x402-${createHash('sha256').update(source).update(self).digest('hex').slice(0, 16)}.json`

if (!existsSync(out)) {
  const { default: solc } = await import('solc')
  const input = {
    language: 'Solidity',
    sources: { 'LocalStack.sol': { content: source } },
    settings: {
      evmVersion: 'cancun',
      optimizer: { enabled: true, runs: 200 },
      viaIR: true,
      metadata: { bytecodeHash: 'none' },
      outputSelection: { '*': { '*': ['evm.deployedBytecode.object'] } },
    },
  }
  const result = JSON.parse(solc.compile(JSON.stringify(input)))
  const complaints = (result.errors ?? []).map((e) => e.formattedMessage)
  if (complaints.length > 0) throw new Error(complaints.join('\n'))
  const contracts = Object.entries(result.contracts['LocalStack.sol'])
  mkdirSync(folder, { recursive: true })
  // Two test runs may compile at once: each file appears whole.
  writeFileSync(`${out}.${process.pid}`, JSON.stringify(Object.fromEntries(contracts.map(([name, c]) => [name, '0x' + c.evm.deployedBytecode.object]))))
  renameSync(`${out}.${process.pid}`, out)
}
process.stdout.write(out + '\n')
