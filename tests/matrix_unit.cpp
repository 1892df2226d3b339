// A matrix unit for CPUs that have none. Loaded into a process (LD_PRELOAD), it carries out each
// AMX instruction that the CPU refuses with SIGILL, as the Intel SDM describes it (volume 2,
// LDTILECFG to TDPBF16PS): what runs is the very code that a CPU with the unit would run, only
// slowly. Whatever the unit would fault on ends the process with a message.
//
//     g++ -O3 -shared -fPIC tests/matrix_unit.cpp -o matrix_unit.so
//
// It has an interpretation of its own of every field, and shares nothing with csrc/.
#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

[[noreturn]] void fault(const char* what) {
  dprintf(STDERR_FILENO, "matrix unit: %s\n", what);
  _exit(99);
}

struct Tile {
  int rows = 0, bytes = 0;  // as configured
  uint8_t data[16][64] = {};
};

thread_local bool configured = false;
thread_local Tile tiles[8];

Tile& tile(int number) {
  if (!configured) fault("an instruction on tiles before LDTILECFG");
  if (number > 7) fault("a tile above 7");
  if (tiles[number].rows == 0) fault("a tile without a configuration");
  return tiles[number];
}

void release() {
  configured = false;
  for (Tile& t : tiles) t = Tile();
}

void load_configuration(const uint8_t* memory) {
  release();
  if (memory[0] == 0) return;
  if (memory[0] != 1) fault("LDTILECFG with a palette above 1");
  if (memory[1] != 0) fault("LDTILECFG with a start row");
  for (int byte = 2; byte < 64; ++byte) {
    const bool reserved = byte < 16 || (byte >= 32 && byte < 48) || byte >= 56;
    if (reserved && memory[byte] != 0) fault("LDTILECFG with a reserved byte");
  }
  for (int number = 0; number < 8; ++number) {
    uint16_t bytes;
    std::memcpy(&bytes, memory + 16 + 2 * number, sizeof(bytes));
    const int rows = memory[48 + number];
    if (rows > 16 || bytes > 64 || (rows == 0) != (bytes == 0)) fault("LDTILECFG with a bad size");
    tiles[number].rows = rows;
    tiles[number].bytes = bytes;
  }
  configured = true;
}

void load(Tile& t, const uint8_t* from, int64_t stride) {
  std::memset(t.data, 0, sizeof(t.data));
  for (int row = 0; row < t.rows; ++row) std::memcpy(t.data[row], from + row * stride, t.bytes);
}

void store(const Tile& t, uint8_t* to, int64_t stride) {
  for (int row = 0; row < t.rows; ++row) std::memcpy(to + row * stride, t.data[row], t.bytes);
}

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// c[m][n] += sum over k of a[m][2k] b[k][2n] + a[m][2k+1] b[k][2n+1]: sums of the even and of the
// odd k apart; denormals are zeros, as in and out.
void multiply_add(Tile& c, const Tile& a, const Tile& b) {
  if (c.rows != a.rows || c.bytes != b.bytes || a.bytes != 4 * b.rows) {
    fault("TDPBF16PS of sizes that do not fit");
  }
  _mm_setcsr(_mm_getcsr() | 0x8040);  // denormals are zeros; the kernel puts the old state back
  for (int m = 0; m < c.rows; ++m) {
    float sums[2][16] = {};
    for (int k = 0; k < b.rows; ++k) {
      uint32_t pair, others[16];
      std::memcpy(&pair, a.data[m] + 4 * k, sizeof(pair));
      std::memcpy(others, b.data[k], sizeof(others));
      const float even = from_bits(pair << 16), odd = from_bits(pair & 0xFFFF0000u);
      for (int n = 0; n < 16; ++n) {  // products of two bfloat16 are exact
        sums[0][n] += even * from_bits(others[n] << 16);
        sums[1][n] += odd * from_bits(others[n] & 0xFFFF0000u);
      }
    }
    float row[16];
    std::memcpy(row, c.data[m], sizeof(row));
    for (int n = 0; n < 16; ++n) row[n] += sums[0][n] + sums[1][n];
    std::memset(c.data[m], 0, sizeof(c.data[m]));
    std::memcpy(c.data[m], row, c.bytes);
  }
  for (int m = c.rows; m < 16; ++m) std::memset(c.data[m], 0, sizeof(c.data[m]));
}

// An instruction with a three-byte VEX prefix of the map 0F38, as AMX's all are.
struct Instruction {
  const uint8_t *start, *end;
  greg_t* registers;
  int opcode, prefix, wide, v, reg, rm;  // prefix: 0 none, 1 66, 2 F3, 3 F2
  bool memory, has_index;
  uint8_t* base;    // with the displacement
  int64_t stride;   // the scaled index

  int64_t value(int number) const {
    static constexpr int kPlaces[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                        REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                        REG_R12, REG_R13, REG_R14, REG_R15};
    return registers[kPlaces[number]];
  }

  bool decode() {
    const uint8_t* p = start;
    if (p[0] != 0xC4 || (p[1] & 31) != 2) return false;
    const int r = (~p[1] >> 7) & 1, x = (~p[1] >> 6) & 1, b = (~p[1] >> 5) & 1;
    wide = p[2] >> 7, v = (~p[2] >> 3) & 15, prefix = p[2] & 3;
    if ((p[2] >> 2 & 1) != 0) return false;  // 256 bits
    opcode = p[3];
    const int mode = p[4] >> 6;
    reg = (p[4] >> 3 & 7) | r << 3, rm = (p[4] & 7) | b << 3;
    memory = mode != 3, has_index = memory && (p[4] & 7) == 4;
    p += 5;
    base = nullptr, stride = 0;
    if (memory) {
      bool relative = mode == 0 && (rm & 7) == 5, no_base = false;
      if (has_index) {
        const int scale = p[0] >> 6, index = (p[0] >> 3 & 7) | x << 3;
        no_base = mode == 0 && (p[0] & 7) == 5;
        if (index != 4) stride = value(index) << scale;
        if (!no_base) base = reinterpret_cast<uint8_t*>(value((p[0] & 7) | b << 3));
        relative = false;
        ++p;
      } else if (!relative) {
        base = reinterpret_cast<uint8_t*>(value(rm));
      }
      if (mode == 1) {
        base += static_cast<int8_t>(*p++);
      } else if (mode == 2 || relative || no_base) {
        int32_t displacement;
        std::memcpy(&displacement, p, sizeof(displacement));
        p += 4;
        if (relative) base = const_cast<uint8_t*>(p);
        base += displacement;
      }
    }
    end = p;
    return true;
  }

  // False where it is none of the matrix unit's.
  bool run() const {
    if (wide != 0) return false;
    const bool two = memory || opcode != 0x5C;
    if (two && v != 0) return false;  // VEX.vvvv must be 1111b
    switch (opcode) {
      case 0x49:
        if (prefix == 3 && !memory && rm == 0) {
          std::memset(tile(reg).data, 0, sizeof(tiles[0].data));
        } else if (prefix == 0 && memory && reg == 0) {
          load_configuration(base + stride);
        } else if (prefix == 0 && !memory && reg == 0 && rm == 0) {
          release();
        } else {
          return false;
        }
        return true;
      case 0x4B:
        if (!has_index) return false;
        if (prefix == 3 || prefix == 1) {
          load(tile(reg), base, stride);
        } else if (prefix == 2) {
          store(tile(reg), base, stride);
        } else {
          return false;
        }
        return true;
      case 0x5C:
        if (prefix != 2 || memory) return false;
        if (reg == rm || reg == v || rm == v) fault("TDPBF16PS of one tile twice");
        multiply_add(tile(reg), tile(rm), tile(v));
        return true;
      default: return false;
    }
  }
};

void on_illegal_instruction(int, siginfo_t*, void* context) {
  auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
  Instruction instruction{};
  instruction.start = reinterpret_cast<const uint8_t*>(machine.gregs[REG_RIP]);
  instruction.registers = machine.gregs;
  if (!instruction.decode() || !instruction.run()) fault("an illegal instruction of another kind");
  machine.gregs[REG_RIP] = reinterpret_cast<greg_t>(instruction.end);
}

__attribute__((constructor)) void install() {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace
