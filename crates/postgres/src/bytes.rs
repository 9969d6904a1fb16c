//! Little-endian fields out of a byte slice, without panics: a field that is not there is `None`.

/// The `N` bytes at `offset`, if they are all there.
#[inline(always)]
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

#[inline(always)]
pub(crate) fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

#[inline(always)]
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

#[inline(always)]
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

#[inline(always)]
pub(crate) fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    array(bytes, offset).map(i32::from_le_bytes)
}

#[inline(always)]
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

#[inline(always)]
pub(crate) fn i64_at(bytes: &[u8], offset: usize) -> Option<i64> {
    array(bytes, offset).map(i64::from_le_bytes)
}
