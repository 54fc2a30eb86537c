//! Pieces of 64 bytes at once: a class is a mask, and a pattern a handful of operations on masks.
//!
//! Bit i of a mask is byte i from where the last piece ended; a block always starts with a
//! piece, so nothing is carried from one block to the next. What a bit becomes depends on the
//! bytes before it in the block and on one behind it, so bits up to the last but one are certain;
//! the piece that the last certain bit starts opens the next block.
//!
//! Letters and other characters beyond ASCII set the bits of all their bytes. White space and
//! numbers beyond ASCII are rare and end what a block knows: `split.rs` steps over them.
//!
//! *GPT-2*: a run of one class is a piece. White space of k characters before something is k − 1
//! and 1, and the last one, if it is a space, belongs to what follows. Letters after a
//! contraction are a piece of their own.
//!
//! *cl100k*: as above, and a single other character, or the last space that is no newline, belongs
//! to the letters behind it; newlines belong to other characters before them; white space is cut
//! behind its last newline; numbers every n digits. A run of newlines behind other characters is
//! found by adding: a carry runs through the ones of a mask.
//!
//! The idea of masks and carries is simdjson's (Langdale & Lemire 2019, arXiv:1902.08318).

use super::classes::{LETTER, OTHER, decode};
use super::split::{Pattern, Splitter, contraction};

/// Bytes of a block.
pub const BLOCK: usize = 64;

/// Masks of one block.
#[derive(Debug, Default, Clone, Copy)]
struct Masks {
    letter: u64,
    number: u64,
    /// White space.
    space: u64,
    /// `\r` and `\n`, which are white space too.
    newline: u64,
    /// `' '`, which is white space too.
    blank: u64,
    apostrophe: u64,
    /// Bytes of no ASCII character.
    high: u64,
    /// Bytes within a character, behind its first one.
    inner: u64,
}

impl Splitter<'_> {
    /// Where pieces start in the block at `at`: bit 0, and the bits up to the last piece that
    /// starts for certain, or the end of the text. No second bit: ask [`Splitter::next`].
    #[inline]
    pub fn starts(&self, at: usize) -> u64 {
        let rest = &self.text[at..];
        match rest.first_chunk::<BLOCK>() {
            Some(block) => self.block(block, None),
            None => {
                // Behind the text stand blanks: they end a run, and are no end to white space.
                let mut block = [b' '; BLOCK];
                block[..rest.len()].copy_from_slice(rest);
                self.block(&block, Some(rest.len()))
            }
        }
    }

    /// `end`: the text ends there, within the block.
    #[inline]
    fn block(&self, block: &[u8; BLOCK], end: Option<usize>) -> u64 {
        let mut m = classify(block);
        let mut known = BLOCK;
        if m.high != 0 {
            known = self.beyond_ascii(block, end.unwrap_or(BLOCK), &mut m);
        }
        let last = known == BLOCK && end.is_some();
        let (starts, open) = match self.pattern {
            Pattern::Whole => (1, 0),
            Pattern::Gpt2 { digits } => (gpt2(block, &m, known, digits), 0),
            Pattern::Cl100k { digits } => cl100k(block, &m, known, digits, last),
        };
        match end {
            Some(end) if last => (starts | 1) & below(end) | 1 << end,
            _ => (starts | 1) & below(known.saturating_sub(1).min(open.trailing_zeros() as usize)),
        }
    }

    /// Adds the characters beyond ASCII up to the first that blocks leave out; returns how many
    /// bytes are known.
    #[cold]
    fn beyond_ascii(&self, block: &[u8; BLOCK], end: usize, m: &mut Masks) -> usize {
        let mut left = m.high;
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            let len = match block[at] {
                0..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            if at + len > end {
                return at;
            }
            let (c, _) = decode(block, at);
            let bits = below(len) << at;
            m.inner |= bits & (bits << 1);
            match self.classes.of(c) {
                // The long s may stand in a contraction.
                LETTER if c != 0x17f => m.letter |= bits,
                OTHER => {}
                _ => return at,
            }
            // Rust's numbers are newer than the pattern's, so this is asked apart.
            if self.pattern == (Pattern::Gpt2 { digits: true }) && char::from_u32(c).is_some_and(char::is_numeric) {
                return at;
            }
            left &= !bits;
        }
        BLOCK
    }
}

/// The lowest `n` bits, at most all 64.
#[inline]
fn below(n: usize) -> u64 {
    if n >= BLOCK { u64::MAX } else { (1 << n) - 1 }
}

/// The first bit of each run of ones.
#[inline]
fn first(mask: u64) -> u64 {
    mask & !(mask << 1)
}

#[inline]
fn gpt2(block: &[u8; BLOCK], m: &Masks, known: usize, digits: bool) -> u64 {
    let other = below(known) & !(m.letter | m.number | m.space);
    let words = first(m.letter) | first(other);
    let mut starts = first(m.space);
    if digits {
        starts |= (words & !(m.blank << 1)) | m.number | (m.space & !(m.space >> 1) & !(m.number >> 1));
    } else {
        starts |= ((words | first(m.number)) & !(m.blank << 1)) | (m.space & !(m.space >> 1));
    }
    // A bit 0 that does not start a run starts a piece all the same.
    starts |= 1;
    let mut quotes = m.apostrophe & starts & (m.letter >> 1);
    while quotes != 0 {
        let at = quotes.trailing_zeros() as usize;
        quotes &= quotes - 1;
        if let Some(len) = contraction(&block[at..], false) {
            starts &= !(2 << at);
            starts |= (1u64 << at) << len;
        }
    }
    starts
}

/// The starts, and bits from which on they depend on what lies behind the block.
#[inline]
fn cl100k(block: &[u8; BLOCK], m: &Masks, known: usize, digits: u8, last: bool) -> (u64, u64) {
    let other = below(known) & !(m.letter | m.number | m.space);
    // Newlines behind other characters: the carry runs to the end of the run.
    let seed = m.newline & (other << 1);
    let taken = (seed.wrapping_add(m.newline) ^ m.newline | seed) & m.newline;
    let space = m.space & !taken;
    let inline = space & !m.newline;
    // Other characters that start a piece, and all bytes of each.
    let lone = first(other) & !(m.blank << 1);
    let joins = (0..3).fold(lone, |j, _| j | (j << 1) & other & m.inner);
    let letters = first(m.letter);
    let mut starts = first(space) | (inline & !(m.space >> 1)) | lone | (letters & !((joins | inline) << 1));
    starts |= if digits == 1 { m.number } else { groups(m.number, digits.into()) };

    let mut open = 0;
    let mut indents = first(inline) & (m.newline << 1) & !starts;
    while indents != 0 {
        let at = indents.trailing_zeros() as usize;
        indents &= indents - 1;
        let end = at + (!(inline >> at)).trailing_zeros() as usize;
        if end >= known && !last {
            open = 1 << at;
        } else if end >= BLOCK || m.newline >> end & 1 == 0 {
            starts |= 1 << at;
        }
    }
    let mut quotes = m.apostrophe & lone & (letters >> 1);
    while quotes != 0 {
        let at = quotes.trailing_zeros() as usize;
        quotes &= quotes - 1;
        if let Some(len) = contraction(&block[at..], true) {
            starts |= (1u64 << at) << len;
        }
    }
    (starts, open)
}

/// Every `n`-th bit of each run, its first one first.
#[inline]
fn groups(mask: u64, n: usize) -> u64 {
    let mut starts = first(mask);
    // Bits with more than n ones up to them: few runs are that long.
    let long = (1..=n).fold(mask, |m, i| m & (mask << i));
    if long != 0 {
        let mut step = starts;
        while step != 0 {
            step = (0..n).fold(step, |s, _| (s << 1) & mask);
            starts |= step;
        }
    }
    starts
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn classify(block: &[u8; BLOCK]) -> Masks {
    // SAFETY: SSE2 is part of every x86-64.
    unsafe { vectors(block) }
}

/// Sixteen bytes at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse2")]
#[inline]
fn vectors(block: &[u8; BLOCK]) -> Masks {
    use std::arch::x86_64::*;
    let mut m = Masks::default();
    for (i, bytes) in block.chunks_exact(16).enumerate() {
        let word = u128::from_le_bytes(bytes.try_into().expect("16 bytes"));
        let x = _mm_set_epi64x((word >> 64) as i64, word as i64);
        let all = |b: u8| _mm_set1_epi8(b as i8);
        let within = |x, from: u8, len: u8| {
            let y = _mm_sub_epi8(x, all(from));
            _mm_cmpeq_epi8(_mm_min_epu8(y, all(len - 1)), y)
        };
        let bits = |mask| u64::from(_mm_movemask_epi8(mask) as u32) << (16 * i);
        let blank = _mm_cmpeq_epi8(x, all(b' '));
        let newline = _mm_or_si128(_mm_cmpeq_epi8(x, all(b'\n')), _mm_cmpeq_epi8(x, all(b'\r')));
        m.letter |= bits(within(_mm_or_si128(x, all(0x20)), b'a', 26));
        m.number |= bits(within(x, b'0', 10));
        m.space |= bits(_mm_or_si128(within(x, b'\t', 5), blank));
        m.newline |= bits(newline);
        m.blank |= bits(blank);
        m.apostrophe |= bits(_mm_cmpeq_epi8(x, all(b'\'')));
        m.high |= bits(x);
    }
    m
}

#[cfg(not(target_arch = "x86_64"))]
fn classify(block: &[u8; BLOCK]) -> Masks {
    plain(block)
}

/// [`classify`] without vector instructions.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn plain(block: &[u8; BLOCK]) -> Masks {
    let mut m = Masks::default();
    for (i, &b) in block.iter().enumerate() {
        let bit = |is: bool| u64::from(is) << i;
        m.letter |= bit(b.is_ascii_alphabetic());
        m.number |= bit(b.is_ascii_digit());
        m.space |= bit(matches!(b, b'\t'..=b'\r' | b' '));
        m.newline |= bit(matches!(b, b'\r' | b'\n'));
        m.blank |= bit(b == b' ');
        m.apostrophe |= bit(b == b'\'');
        m.high |= bit(b >= 0x80);
    }
    m
}

#[cfg(test)]
mod tests {
    use super::super::classes::Classes;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn vectors_class_as_plain_code_does() {
        for base in 0..=255u8 {
            let block: [u8; BLOCK] = std::array::from_fn(|i| base.wrapping_add((i as u8).wrapping_mul(37)));
            assert_eq!(format!("{:?}", classify(&block)), format!("{:?}", plain(&block)));
        }
    }

    /// Text of what the patterns care for, in short runs.
    fn text() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            4 => "[a-z]{1,9}",
            4 => " {1,3}",
            2 => "[ \t\r\n]{1,4}",
            2 => "'[sStTmMdDrRvVlL][eElLa]?",
            2 => "[0-9]{1,8}",
            2 => "[!-/:-@]{1,3}",
            1 => "[“”’—é日本\u{a0}\u{3000}\u{85}ſ²٣१\u{301}🏞Ж]{1,3}",
            1 => "[a-z]{60,70}| {60,70}|\n {55,70}|-{60,70}",
            1 => any::<String>(),
        ];
        prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Blocks and single characters cut alike, wherever a block may start.
        #[test]
        fn blocks_cut_as_characters_do(text in text()) {
            let classes = Classes::get();
            for pattern in [
                Pattern::Gpt2 { digits: false },
                Pattern::Gpt2 { digits: true },
                Pattern::Cl100k { digits: 1 },
                Pattern::Cl100k { digits: 3 },
            ] {
                let s = Splitter { text: text.as_bytes(), pattern, classes };
                let mut at = 0;
                while at < text.len() {
                    let mut bits = s.starts(at) & !1;
                    let mut from = at;
                    while bits != 0 {
                        let to = at + bits.trailing_zeros() as usize;
                        bits &= bits - 1;
                        prop_assert_eq!(s.next(from), Some(to), "{:?} from {} in {:?}", pattern, from, text);
                        from = to;
                    }
                    at = if from == at { s.next(at).unwrap() } else { from };
                }
            }
        }
    }
}
