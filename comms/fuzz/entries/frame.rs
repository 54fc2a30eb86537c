use esker_comms::net::frame::Frame;

/// Parses the bytes as a frame; what parses is what is written.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let frame = Frame::parse(bytes).map_err(|e| e.to_string())?;
    assert_eq!(&frame.to_wire()[4..], bytes, "a frame has one form");
    Ok(())
}
