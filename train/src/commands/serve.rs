//! `esker serve`: a model over HTTP.

use super::{Failure, model::Opened, print};
use crate::cli;
use esker_eval::serve::{Options, Server};

/// Prompts and answers are not longer than this unless asked for.
const LENGTH_MAX: usize = 4096;

pub fn run(args: cli::model::Serve) -> Result<(), Failure> {
    let model = Opened::new(&args.model)?;
    let tokenizer = model.tokenizer()?;
    let max_length = if args.max_length > 0 { args.max_length } else { model.config().context.min(LENGTH_MAX) };
    if max_length > 1 << 24 {
        return Err(Failure::input(format!("--max-length is {max_length}; expected at most {}", 1 << 24)));
    }
    model.warn_past_context(max_length);
    let folder = args.model.dir.canonicalize().map_err(|e| Failure::file(&args.model.dir, &e))?;
    let folder = folder.file_name().map_or_else(|| "esker".into(), |name| name.to_string_lossy().into_owned());
    let name = args.name.unwrap_or(folder);
    let options = Options { name, max_batch: args.max_batch.into(), max_length, eos: model.card.eos.clone() };
    let (stream, config, weights) = (&model.stream, model.config(), &model.weights);
    let server = Server::new(stream, config, weights, &tokenizer, options.clone(), args.addr)?;
    let stop = server.stop();
    let mut asked = false;
    let handler = move || {
        if std::mem::replace(&mut asked, true) {
            std::process::exit(130);
        }
        eprintln!("\nending what is under way; once more to stop at once");
        stop.notify_one();
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        eprintln!("warning: Ctrl-C will end answers halfway: {e}");
    }
    let (addr, lanes, name) = (server.addr(), server.lanes(), &options.name);
    print(&format!(
        "http://{addr}/v1/completions   model {name}, {lanes} texts at once of up to {max_length} tokens each\n"
    ))?;
    Ok(server.run()?)
}
